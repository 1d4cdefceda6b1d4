package peer

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"saru/conntable"
)

// An origin is what the records of one message have from it.
type origin struct {
	version uint8
	clock   uint64
	sender  conntable.NodeID // made the versions that name no node
	age     time.Duration    // for how long it was under way
}

// A decoder reads records. It has the room for one, so that none is
// allocated for each message.
type decoder struct{ r conntable.Record }

// records calls deliver with each record of the groups in b. The record is
// deliver's until it returns; its Seq and PEData may be kept.
func (d *decoder) records(b []byte, m *origin, deliver func(*conntable.Record)) error {
	if m.version == 1 {
		return d.records1(b, m, deliver)
	}
	c := cursor{b: b}
	r := &d.r
	*r = conntable.Record{}
	var what uint8
	for first := true; len(c.b) > 0; first = false {
		changes, count := c.u8(), 1
		if changes&changeMany != 0 {
			count = int(c.u8())
		}
		if count == 0 || first && changes&changeKind == 0 {
			return errGroups
		}
		decodeHead(&c, changes, &what, r)
		for dest := r.Dest; count > 0; count-- {
			m.decodeOne(&c, what, r)
			if c.bad {
				return errGroups
			}
			deliver(r)
			if what&whatExtras != 0 {
				r.Dest = dest // the group's
			}
		}
	}
	return nil
}

// decodeHead reads what a group changes in r, which has the group before.
func decodeHead(c *cursor, changes uint8, what *uint8, r *conntable.Record) {
	if changes&changeKind != 0 {
		was := *what
		*what = decodeKind(c, r)
		if !r.Virtual.IsValid() || (was^*what)&what6 != 0 {
			r.Virtual, r.Dest = noAddr(*what), noAddr(*what)
		}
	}
	vaddr, vport := c.tail(r.Virtual.Addr(), changes&changeVirtual), r.Virtual.Port()
	if changes&changeVirtualPort != 0 {
		vport = c.u16()
	}
	daddr, dport := c.tail(r.Dest.Addr(), changes&changeDest>>destShift), destPort(r.Virtual.Port(), r.Dest.Port(), vport)
	if changes&changeDestPort != 0 {
		dport = c.u16()
	}
	r.Virtual, r.Dest = netip.AddrPortFrom(vaddr, vport), netip.AddrPortFrom(daddr, dport)
}

func decodeKind(c *cursor, r *conntable.Record) (what uint8) {
	what = c.u8()
	if what&^whatKnown != 0 {
		c.bad = true
	}
	r.Deleted = what&whatGone != 0
	r.Protocol = c.u8()
	r.State = uint16(c.u8())
	setFlags(r, c.u16())
	r.Timeout = time.Duration(c.uvarint(maxTimeout)) * time.Second
	r.FWMark = 0
	if what&whatMark != 0 {
		r.FWMark = uint32(c.uvarint(math.MaxUint32))
	}
	return what
}

func setFlags(r *conntable.Record, flags uint16) {
	r.Flags = uint32(flags) & conntable.FlagBackupMask
	r.Template = r.Flags&conntable.FlagTemplate != 0
}

// tail reads an address, of which shared says how much it has of before.
func (c *cursor) tail(before netip.Addr, shared uint8) netip.Addr {
	if shared == sharedAll {
		return before
	}
	if before.Is4() {
		a := before.As4()
		c.fill(a[:], shared)
		return netip.AddrFrom4(a)
	}
	a := before.As16()
	c.fill(a[:], shared)
	return netip.AddrFrom16(a)
}

func (c *cursor) fill(a []byte, shared uint8) {
	switch shared {
	case sharedBut1:
		a = a[len(a)-1:]
	case sharedBut2:
		a = a[len(a)-2:]
	}
	copy(a, c.take(len(a)))
}

func (m *origin) decodeOne(c *cursor, what uint8, r *conntable.Record) {
	r.Seq, r.PEName, r.PEData = nil, "", nil
	r.Remaining = max(0, r.Timeout-m.age)
	a := c.addr(what&what6 != 0)
	r.Client = netip.AddrPortFrom(a, c.u16())
	r.Version = conntable.Version{Clock: m.clock, Node: m.sender}
	switch {
	case what&whatOld == 0:
	case m.version == 1:
		r.Version.Clock -= c.uvarint(m.clock)
	default:
		r.Version.Clock = c.near(m.clock)
	}
	if what&whatNode != 0 {
		r.Version.Node = conntable.NodeID(c.u32())
	}
	if what&whatRemaining != 0 {
		// More than the timeout cannot remain.
		told := time.Duration(c.uvarint(maxRemaining)) * time.Millisecond
		r.Remaining = max(0, min(told, r.Timeout)-m.age)
	}
	if what&whatExtras != 0 {
		decodeExtras(c, r, m.version)
	}
}

func decodeExtras(c *cursor, r *conntable.Record, version uint8) {
	which := c.u8()
	if which&^uint8(extraKnown) != 0 || version == 1 && which&extraDest != 0 {
		c.bad = true
		return
	}
	if which&extraSeq != 0 {
		r.Seq = &conntable.SeqPair{
			In:  conntable.Seq{Init: c.u32(), Delta: c.u32(), Prev: c.u32()},
			Out: conntable.Seq{Init: c.u32(), Delta: c.u32(), Prev: c.u32()},
		}
	}
	if which&extraPE != 0 {
		n := int(c.u8())
		if n == 0 || n > maxPEName {
			c.bad = true
			return
		}
		r.PEName = string(c.take(n))
		r.PEData = slices.Clone(c.take(int(c.u8())))
	}
	if which&extraDest != 0 {
		r.Dest = netip.AddrPortFrom(c.addr(r.Client.Addr().Is4()), r.Dest.Port())
	}
}
