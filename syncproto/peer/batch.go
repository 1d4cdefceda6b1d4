package peer

import (
	"encoding/binary"
	"slices"

	"saru/conntable"
)

// A batch puts records into messages, those of a group together, so that what
// they have in common is said once.
type batch struct {
	enc     encoder
	version uint8
	clock   uint64
	self    conntable.NodeID

	recs   []conntable.Record
	groups []group
	slots  []int32 // hash table of groups, by index + 1
	of     []int32 // each record's group, -1 if it cannot be said
	runs   []run   // in the order in which they are said
	order  []int32 // records by run
	run    int     // next to say
	said   int     // of that run
}

// A run is where the records of one group are in batch.order.
type run struct{ group, from, to int32 }

// load takes records of self to say in a version of the protocol, dropping
// those that cannot be said. It returns the clock that the messages must have:
// the one that most of the records share in their versions, as those of one
// flush do.
func (b *batch) load(recs []conntable.Record, version uint8, self conntable.NodeID, d *drops) uint64 {
	b.version, b.self, b.recs = version, self, recs
	b.clock = commonClock(recs)
	if version == 1 {
		b.clock = highestClock(recs)
	}
	b.collect(d)
	b.arrange()
	return b.clock
}

// collect finds each record's group.
func (b *batch) collect(d *drops) {
	size := 64
	for size < 2*len(b.recs) {
		size *= 2
	}
	if len(b.slots) < size {
		b.slots = make([]int32, size)
	}
	clear(b.slots)
	b.groups, b.of, b.runs = b.groups[:0], b.of[:0], b.runs[:0]
	var g group
	for i := range b.recs {
		if !groupOf(&b.recs[i], b.clock, b.self, &g) || b.version == 1 && isMixed(&b.recs[i]) {
			d.count(DropUnsayable)
			b.of = append(b.of, -1)
			continue
		}
		if b.version == 1 {
			g.what &^= whatOld // all tell it
		}
		id := b.intern(&g)
		b.runs[id].to++ // how many, for now
		b.of = append(b.of, id)
	}
}

// intern returns the index of g in groups.
func (b *batch) intern(g *group) int32 {
	mask := uint64(len(b.slots) - 1)
	at := g.hash() & mask
	for ; b.slots[at] != 0; at = (at + 1) & mask {
		if id := b.slots[at] - 1; b.groups[id] == *g {
			return id
		}
	}
	id := int32(len(b.groups))
	b.groups = append(b.groups, *g)
	b.runs = append(b.runs, run{group: id})
	b.slots[at] = id + 1
	return id
}

func (g *group) hash() uint64 {
	const prime = 0x9e3779b97f4a7c15
	h := uint64(g.kind()) ^ uint64(g.what)<<32 ^ uint64(g.timeout)<<40
	h = h*prime ^ uint64(g.fwmark) ^ uint64(g.virtual.Port())<<32 ^ uint64(g.dest.Port())<<48
	v, d := g.virtual.Addr().As16(), g.dest.Addr().As16()
	for i := 0; i < 16; i += 8 {
		h = h*prime ^ binary.BigEndian.Uint64(v[i:])
		h = h*prime ^ binary.BigEndian.Uint64(d[i:])
	}
	h *= prime
	return h ^ h>>32
}

// arrange puts the groups in order, and each one's records beside each other.
func (b *batch) arrange() {
	slices.SortFunc(b.runs, func(x, y run) int { return b.groups[x.group].compare(&b.groups[y.group]) })
	b.order = slices.Grow(b.order[:0], len(b.recs))[:len(b.recs)]
	place := b.slots[:len(b.groups)] // done with as a hash table
	at := int32(0)
	for i := range b.runs {
		r := &b.runs[i]
		r.from, r.to, place[r.group] = at, at+r.to, at
		at = r.to
	}
	b.order = b.order[:at]
	for i, id := range b.of {
		if id >= 0 {
			b.order[place[id]] = int32(i)
			place[id]++
		}
	}
	b.run, b.said = 0, 0
}

// next appends as many records as fit into limit bytes to buf. It returns the
// message and how many records it says; at 0 there are none left.
func (b *batch) next(buf []byte, limit int) ([]byte, int) {
	b.enc.reset(buf, limit, b.version, b.clock, b.self)
	n := 0
	for b.run < len(b.runs) {
		r := &b.runs[b.run]
		some := b.enc.addRun(b.recs, b.order[int(r.from)+b.said:r.to], &b.groups[r.group])
		n += some
		b.said += some
		if int(r.from)+b.said < int(r.to) {
			break
		}
		b.run, b.said = b.run+1, 0
	}
	return b.enc.b, n
}

// commonClock returns the version that more than half of recs have, if there
// is one (Boyer and Moore's majority vote), else one of theirs.
func commonClock(recs []conntable.Record) uint64 {
	var clock uint64
	votes := 0
	for i := range recs {
		switch v := recs[i].Version.Clock; {
		case votes == 0:
			clock, votes = v, 1
		case v == clock:
			votes++
		default:
			votes--
		}
	}
	return min(clock, conntable.MaxClock)
}

func highestClock(recs []conntable.Record) uint64 {
	var clock uint64
	for i := range recs {
		clock = max(clock, recs[i].Version.Clock)
	}
	return min(clock, conntable.MaxClock)
}
