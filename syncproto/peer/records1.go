package peer

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"saru/conntable"
)

// Records as version 1 of the protocol said them: each group with a whole
// head of its own. They are told to peers that understand no more, and read
// from them, so that a cluster can be upgraded one node after another.

// add1 appends r, and reports whether there was room.
func (e *encoder) add1(r *conntable.Record, g *group) bool {
	before, count, open := len(e.b), e.count, e.open
	if e.count < 0 || e.b[e.count] == maxGroup || e.open != *g {
		e.head1(g)
	}
	e.b = appendAddr(e.b, r.Client.Addr(), g.what&what6 != 0)
	e.b = binary.BigEndian.AppendUint16(e.b, r.Client.Port())
	e.b = binary.AppendUvarint(e.b, e.clock-min(e.clock, r.Version.Clock))
	e.rest(r, g.what)
	if len(e.b) > e.limit {
		e.b, e.count, e.open = e.b[:before], count, open
		return false
	}
	e.b[e.count]++
	return true
}

func (e *encoder) head1(g *group) {
	e.open, e.count = *g, len(e.b)
	v6 := g.what&what6 != 0
	e.b = append(e.b, 0, g.what&what1Known, g.protocol, g.state)
	e.b = binary.BigEndian.AppendUint16(e.b, g.flags)
	e.b = binary.BigEndian.AppendUint16(e.b, g.virtual.Port())
	e.b = binary.BigEndian.AppendUint16(e.b, g.dest.Port())
	e.b = appendAddr(e.b, g.virtual.Addr(), v6)
	e.b = appendAddr(e.b, g.dest.Addr(), v6)
	e.b = binary.AppendUvarint(e.b, uint64(g.timeout))
	if g.what&whatMark != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(g.fwmark))
	}
}

// records1 is records for version 1.
func (d *decoder) records1(b []byte, m *origin, deliver func(*conntable.Record)) error {
	c := cursor{b: b}
	r := &d.r
	for len(c.b) > 0 && !c.bad {
		*r = conntable.Record{}
		count := int(c.u8())
		what := c.u8()
		if count == 0 || what&^what1Known != 0 {
			return errGroups
		}
		decodeHead1(&c, what, r)
		for range count {
			m.decodeOne(&c, what|whatOld, r)
			if c.bad {
				return errGroups
			}
			deliver(r)
		}
	}
	if c.bad {
		return errGroups
	}
	return nil
}

func decodeHead1(c *cursor, what uint8, r *conntable.Record) {
	v6 := what&what6 != 0
	r.Protocol = c.u8()
	r.State = uint16(c.u8())
	setFlags(r, c.u16())
	r.Deleted = what&whatGone != 0
	vport, dport := c.u16(), c.u16()
	r.Virtual = netip.AddrPortFrom(c.addr(v6), vport)
	r.Dest = netip.AddrPortFrom(c.addr(v6), dport)
	r.Timeout = time.Duration(c.uvarint(maxTimeout)) * time.Second
	if what&whatMark != 0 {
		r.FWMark = uint32(c.uvarint(math.MaxUint32))
	}
}
