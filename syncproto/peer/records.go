package peer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"time"

	"saru/conntable"
)

// What a group says, in its second byte.
const (
	what6         = 1 << iota // addresses are IPv6
	whatMark                  // there is a fwmark
	whatGone                  // tombstones
	whatExtras                // records have sequence numbers or engine data
	whatNode                  // records name their version's node
	whatRemaining             // records tell what remains
	whatKnown     = 1<<iota - 1
)

const (
	extraSeq = 1 << iota
	extraPE
	extraKnown = 1<<iota - 1
)

const (
	maxGroup     = 255
	maxTimeout   = math.MaxUint32 // seconds
	maxRemaining = uint64(math.MaxInt64 / time.Millisecond)
	maxPEName    = 16

	// maxHead and maxOne bound what one more record can take in an encoder,
	// in bytes: a new group's head and the record with all extras.
	maxHead = 10 + 2*16 + 2*5
	maxOne  = 16 + 2 + 10 + 4 + 9 + 1 + 24 + 2 + maxPEName + 255
)

var errGroups = errors.New("malformed group of records")

// A group is what the records of one group have in common.
type group struct {
	virtual, dest netip.AddrPort
	timeout       uint32
	fwmark        uint32
	flags         uint16
	protocol      uint8
	state         uint8
	what          uint8
}

// groupOf returns r's group. It reports false for what this protocol cannot
// say: mixed address families, a state over 255.
func groupOf(r *conntable.Record, self conntable.NodeID) (group, bool) {
	v6 := !r.Client.Addr().Is4()
	g := group{
		virtual: r.Virtual, dest: r.Dest, protocol: r.Protocol, state: uint8(r.State), fwmark: r.FWMark,
		timeout: uint32(min(r.Timeout/time.Second, maxTimeout)),
		flags:   uint16(r.Flags & conntable.FlagBackupMask &^ conntable.FlagTemplate),
	}
	if r.Template {
		g.flags |= uint16(conntable.FlagTemplate)
	}
	if v6 {
		g.what |= what6
	}
	if r.FWMark != 0 {
		g.what |= whatMark
	}
	if r.Deleted {
		g.what |= whatGone
	}
	if r.Seq != nil || r.PEName != "" {
		g.what |= whatExtras
	}
	if r.Version.Node != self {
		g.what |= whatNode
	}
	// Live news has its whole timeout before it.
	if rest := r.Timeout - r.Remaining; rest < 0 || rest > 100*time.Millisecond {
		g.what |= whatRemaining
	}
	ok := r.Client.IsValid() && r.Virtual.IsValid() && r.Dest.IsValid() &&
		r.State <= math.MaxUint8 && r.Timeout >= 0 &&
		r.Virtual.Addr().Is4() == !v6 && r.Dest.Addr().Is4() == !v6 &&
		len(r.PEName) <= maxPEName && len(r.PEData) <= math.MaxUint8
	return g, ok
}

func (g *group) compare(h *group) int {
	return cmp.Or(
		g.virtual.Compare(h.virtual), g.dest.Compare(h.dest),
		cmp.Compare(uint32(g.protocol)<<24|uint32(g.state)<<16|uint32(g.flags), uint32(h.protocol)<<24|uint32(h.state)<<16|uint32(h.flags)),
		cmp.Compare(g.timeout, h.timeout), cmp.Compare(g.fwmark, h.fwmark), cmp.Compare(g.what, h.what),
	)
}

// An encoder puts records into the body of one message.
type encoder struct {
	b     []byte
	limit int // of len(b)
	clock uint64
	self  conntable.NodeID
	open  group
	count int // where the open group's count is in b, -1 if none is open
}

// reset starts a body behind b's present contents. clock must not be lower
// than any version's.
func (e *encoder) reset(b []byte, limit int, clock uint64, self conntable.NodeID) {
	*e = encoder{b: b, limit: limit, clock: clock, self: self, count: -1}
}

// add appends r, and reports whether there was room.
func (e *encoder) add(r *conntable.Record, g *group) bool {
	if len(e.b)+maxHead+maxOne > e.limit && len(e.b)+e.size(r, g) > e.limit {
		return false
	}
	if e.count < 0 || e.b[e.count] == maxGroup || e.open != *g {
		e.head(g)
	}
	e.b[e.count]++
	v6 := g.what&what6 != 0
	e.b = appendAddr(e.b, r.Client.Addr(), v6)
	e.b = binary.BigEndian.AppendUint16(e.b, r.Client.Port())
	e.b = binary.AppendUvarint(e.b, e.clock-min(e.clock, r.Version.Clock))
	if g.what&whatNode != 0 {
		e.b = binary.BigEndian.AppendUint32(e.b, uint32(r.Version.Node))
	}
	if g.what&whatRemaining != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(max(0, r.Remaining/time.Millisecond)))
	}
	if g.what&whatExtras != 0 {
		e.b = appendExtras(e.b, r)
	}
	return true
}

// size is an upper bound of what r takes, near enough that a full body does
// not waste much.
func (e *encoder) size(r *conntable.Record, g *group) int {
	n := maxOne - 24 - 2 - maxPEName - 255
	if e.count < 0 || e.b[e.count] == maxGroup || e.open != *g {
		n += maxHead
	}
	if g.what&what6 == 0 {
		n -= 12
	}
	if g.what&whatExtras != 0 {
		n += 24 + 2 + len(r.PEName) + len(r.PEData)
	}
	return n
}

func (e *encoder) head(g *group) {
	e.open, e.count = *g, len(e.b)
	v6 := g.what&what6 != 0
	e.b = append(e.b, 0, g.what, g.protocol, g.state)
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

func appendExtras(b []byte, r *conntable.Record) []byte {
	var which byte
	if r.Seq != nil {
		which |= extraSeq
	}
	if r.PEName != "" {
		which |= extraPE
	}
	b = append(b, which)
	if r.Seq != nil {
		for _, s := range [2]conntable.Seq{r.Seq.In, r.Seq.Out} {
			b = binary.BigEndian.AppendUint32(b, s.Init)
			b = binary.BigEndian.AppendUint32(b, s.Delta)
			b = binary.BigEndian.AppendUint32(b, s.Prev)
		}
	}
	if r.PEName != "" {
		b = append(append(b, byte(len(r.PEName))), r.PEName...)
		b = append(append(b, byte(len(r.PEData))), r.PEData...)
	}
	return b
}

// A decoder reads records. It has the room for one, so that none is
// allocated for each message.
type decoder struct{ r conntable.Record }

// records calls deliver with each record of the groups in b. The record is
// deliver's until it returns; its Seq and PEData may be kept. sender made the
// versions that name no node; age is for how long b was under way.
func (d *decoder) records(b []byte, clock uint64, sender conntable.NodeID, age time.Duration, deliver func(*conntable.Record)) error {
	c := cursor{b: b}
	r := &d.r
	for len(c.b) > 0 && !c.bad {
		*r = conntable.Record{}
		count := int(c.u8())
		what := c.u8()
		if count == 0 || what&^whatKnown != 0 {
			return errGroups
		}
		decodeHead(&c, what, r)
		rest := max(0, r.Timeout-age)
		for range count {
			r.Seq, r.PEName, r.PEData, r.Remaining = nil, "", nil, rest
			decodeOne(&c, what, clock, sender, age, r)
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

func decodeHead(c *cursor, what uint8, r *conntable.Record) {
	v6 := what&what6 != 0
	r.Protocol = c.u8()
	r.State = uint16(c.u8())
	r.Flags = uint32(c.u16()) & conntable.FlagBackupMask
	r.Template = r.Flags&conntable.FlagTemplate != 0
	r.Deleted = what&whatGone != 0
	vport, dport := c.u16(), c.u16()
	r.Virtual = netip.AddrPortFrom(c.addr(v6), vport)
	r.Dest = netip.AddrPortFrom(c.addr(v6), dport)
	r.Timeout = time.Duration(c.uvarint(maxTimeout)) * time.Second
	if what&whatMark != 0 {
		r.FWMark = uint32(c.uvarint(math.MaxUint32))
	}
}

func decodeOne(c *cursor, what uint8, clock uint64, sender conntable.NodeID, age time.Duration, r *conntable.Record) {
	a := c.addr(what&what6 != 0)
	r.Client = netip.AddrPortFrom(a, c.u16())
	r.Version = conntable.Version{Clock: clock - c.uvarint(clock), Node: sender}
	if what&whatNode != 0 {
		r.Version.Node = conntable.NodeID(c.u32())
	}
	if what&whatRemaining != 0 {
		// More than the timeout cannot remain.
		told := time.Duration(c.uvarint(maxRemaining)) * time.Millisecond
		r.Remaining = max(0, min(told, r.Timeout)-age)
	}
	if what&whatExtras != 0 {
		decodeExtras(c, r)
	}
}

func decodeExtras(c *cursor, r *conntable.Record) {
	which := c.u8()
	if which&^uint8(extraKnown) != 0 {
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
}
