package peer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"time"

	"saru/conntable"
)

// What a group says of its records.
const (
	what6         = 1 << iota // addresses are IPv6
	whatMark                  // there is a fwmark
	whatGone                  // tombstones
	whatExtras                // records have sequence numbers or engine data
	whatNode                  // records name their version's node
	whatRemaining             // records tell what remains
	whatOld                   // records tell how their versions differ from the clock
	whatKnown     = 1<<iota - 1
	what1Known    = whatOld - 1 // in version 1, where all records tell versions
)

// What a group tells that differs from the group before it.
const (
	changeVirtual     = 0x03 // how much of the virtual address follows: sharedAll ... sharedNone
	changeVirtualPort = 0x04
	changeDest        = 0x18 // how much of the real server's address follows
	changeDestPort    = 0x20
	changeKind        = 0x40
	changeMany        = 0x80 // a count follows; else there is one record
	destShift         = 3
)

// How much an address shares with the one before.
const (
	sharedAll  = iota
	sharedBut1 // its last byte differs
	sharedBut2 // its last two bytes differ
	sharedNone
)

const (
	extraSeq = 1 << iota
	extraPE
	extraDest  // the real server's address, of the other family
	extraKnown = 1<<iota - 1
)

const (
	maxGroup     = 255
	maxTimeout   = math.MaxUint32 // seconds
	maxRemaining = uint64(math.MaxInt64 / time.Millisecond)
	maxPEName    = 16
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

// isMixed reports whether r's real server is of the other address family than
// its client: IPVS tunnels to such (net/netfilter/ipvs/ip_vs_ctl.c). Version 1
// cannot say it.
func isMixed(r *conntable.Record) bool { return r.Dest.Addr().Is4() != r.Client.Addr().Is4() }

// groupOf returns r's group, in a message that has clock and is of self. It
// reports false for what this protocol cannot say: a client and a virtual address
// of two families, a state over 255.
func groupOf(r *conntable.Record, clock uint64, self conntable.NodeID, g *group) bool {
	v6 := !r.Client.Addr().Is4()
	*g = group{
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
	if isMixed(r) {
		g.what |= whatExtras
		g.dest = netip.AddrPortFrom(noAddr(g.what).Addr(), r.Dest.Port())
	}
	if r.Version.Node != self {
		g.what |= whatNode
	}
	if r.Version.Clock != clock {
		g.what |= whatOld
	}
	// Live news has its whole timeout before it.
	if rest := r.Timeout - r.Remaining; rest < 0 || rest > 100*time.Millisecond {
		g.what |= whatRemaining
	}
	return r.Client.IsValid() && r.Virtual.IsValid() && r.Dest.IsValid() &&
		r.State <= math.MaxUint8 && r.Timeout >= 0 && r.Version.Clock <= conntable.MaxClock &&
		r.Virtual.Addr().Is4() == !v6 &&
		len(r.PEName) <= maxPEName && len(r.PEData) <= math.MaxUint8
}

// compare puts what shares most beside each other.
func (g *group) compare(h *group) int {
	return cmp.Or(
		cmp.Compare(g.what, h.what), cmp.Compare(g.kind(), h.kind()),
		cmp.Compare(g.timeout, h.timeout), cmp.Compare(g.fwmark, h.fwmark),
		g.virtual.Compare(h.virtual), g.dest.Compare(h.dest),
	)
}

func (g *group) kind() uint32 {
	return uint32(g.protocol)<<24 | uint32(g.state)<<16 | uint32(g.flags)
}

// sameKind reports whether g and h differ in nothing but addresses and ports.
func (g *group) sameKind(h *group) bool {
	return g.what == h.what && g.kind() == h.kind() && g.timeout == h.timeout && g.fwmark == h.fwmark
}

// An encoder puts records into the body of one message.
type encoder struct {
	b       []byte
	limit   int // of len(b)
	version uint8
	clock   uint64
	self    conntable.NodeID
	open    group
	count   int // where the open group's count is in b, -1 if none is open
}

// reset starts a body behind b's present contents.
func (e *encoder) reset(b []byte, limit int, version uint8, clock uint64, self conntable.NodeID) {
	*e = encoder{b: b, limit: limit, version: version, clock: clock, self: self, count: -1}
}

// addRun appends records of one group, those of recs that order names, and
// returns for how many there was room.
func (e *encoder) addRun(recs []conntable.Record, order []int32, g *group) int {
	if e.version == 1 {
		for n, i := range order {
			if !e.add1(&recs[i], g) {
				return n
			}
		}
		return len(order)
	}
	done := 0
	for done < len(order) {
		want := min(len(order)-done, maxGroup)
		n := e.addGroup(recs, order[done:done+want], g)
		done += n
		if n < want {
			break
		}
	}
	return done
}

// addGroup appends one group of up to maxGroup records, and returns for how
// many there was room.
func (e *encoder) addGroup(recs []conntable.Record, order []int32, g *group) int {
	start := len(e.b)
	count := e.head(g, len(order) > 1)
	n := 0
	for _, i := range order {
		r, before := &recs[i], len(e.b)
		e.b = appendAddr(e.b, r.Client.Addr(), g.what&what6 != 0)
		e.b = binary.BigEndian.AppendUint16(e.b, r.Client.Port())
		if g.what&whatOld != 0 {
			e.b = binary.AppendVarint(e.b, int64(r.Version.Clock)-int64(e.clock))
		}
		e.rest(r, g.what)
		if len(e.b) > e.limit {
			e.b = e.b[:before]
			break
		}
		n++
	}
	if n == 0 {
		e.b = e.b[:start]
		return 0
	}
	if count > 0 {
		e.b[count] = byte(n)
	}
	e.open = *g
	return n
}

// head begins a group: what differs from the group before. It returns where
// the count is, 0 for one record.
func (e *encoder) head(g *group, many bool) (count int) {
	at := len(e.b)
	e.b = append(e.b, 0)
	was := &e.open
	if many {
		e.b[at] |= changeMany
		count = len(e.b)
		e.b = append(e.b, 0)
	}
	before := [2]netip.AddrPort{was.virtual, was.dest}
	if !g.sameKind(was) || !was.virtual.IsValid() {
		e.b[at] |= changeKind
		e.kind(g)
		if (g.what^was.what)&what6 != 0 || !was.virtual.IsValid() {
			before = [2]netip.AddrPort{noAddr(g.what), noAddr(g.what)}
		}
	}
	e.b[at] |= e.addr(before[0].Addr(), g.virtual.Addr())
	if g.virtual.Port() != before[0].Port() {
		e.b[at] |= changeVirtualPort
		e.b = binary.BigEndian.AppendUint16(e.b, g.virtual.Port())
	}
	e.b[at] |= e.addr(before[1].Addr(), g.dest.Addr()) << destShift
	if g.dest.Port() != destPort(before[0].Port(), before[1].Port(), g.virtual.Port()) {
		e.b[at] |= changeDestPort
		e.b = binary.BigEndian.AppendUint16(e.b, g.dest.Port())
	}
	return count
}

// noAddr stands for the address before the first of a family.
func noAddr(what uint8) netip.AddrPort {
	if what&what6 != 0 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
}

// destPort is a real server's port unless another is told: as before, or as
// that of its service if it was so before.
func destPort(virtualBefore, destBefore, virtual uint16) uint16 {
	if virtualBefore == destBefore {
		return virtual
	}
	return destBefore
}

func (e *encoder) kind(g *group) {
	e.b = append(e.b, g.what, g.protocol, g.state)
	e.b = binary.BigEndian.AppendUint16(e.b, g.flags)
	e.b = binary.AppendUvarint(e.b, uint64(g.timeout))
	if g.what&whatMark != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(g.fwmark))
	}
}

// addr appends as much of a as it does not share with before, and returns how
// much that is.
func (e *encoder) addr(before, a netip.Addr) byte {
	if a == before {
		return sharedAll
	}
	if a.Is4() {
		x, y := before.As4(), a.As4()
		return e.tail(x[:], y[:])
	}
	x, y := before.As16(), a.As16()
	return e.tail(x[:], y[:])
}

func (e *encoder) tail(before, a []byte) byte {
	n := len(a)
	switch {
	case string(before[:n-1]) == string(a[:n-1]):
		e.b = append(e.b, a[n-1])
		return sharedBut1
	case string(before[:n-2]) == string(a[:n-2]):
		e.b = append(e.b, a[n-2], a[n-1])
		return sharedBut2
	}
	e.b = append(e.b, a...)
	return sharedNone
}

// rest appends what few records have behind their version's clock.
func (e *encoder) rest(r *conntable.Record, what uint8) {
	if what&whatNode != 0 {
		e.b = binary.BigEndian.AppendUint32(e.b, uint32(r.Version.Node))
	}
	if what&whatRemaining != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(max(0, r.Remaining/time.Millisecond)))
	}
	if what&whatExtras != 0 {
		e.b = appendExtras(e.b, r)
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
	if isMixed(r) {
		which |= extraDest
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
	if which&extraDest != 0 {
		b = appendAddr(b, r.Dest.Addr(), r.Dest.Addr().Is6())
	}
	return b
}
