package peer

import (
	"slices"

	"saru/conntable"
)

// A batch puts records into messages, sorted so that groups get long.
type batch struct {
	enc    encoder
	recs   []conntable.Record
	groups []group
	order  []int32
	said   int // of order
}

// load takes records to say, dropping those that cannot be said, and returns a
// clock that is not lower than any of their versions.
func (b *batch) load(recs []conntable.Record, clock uint64, self conntable.NodeID, d *drops) uint64 {
	b.recs, b.groups, b.order, b.said = recs, b.groups[:0], b.order[:0], 0
	for i := range recs {
		g, ok := groupOf(&recs[i], self)
		if ok {
			b.order = append(b.order, int32(i))
			clock = max(clock, recs[i].Version.Clock)
		} else {
			d.count(DropUnsayable)
		}
		b.groups = append(b.groups, g)
	}
	slices.SortFunc(b.order, func(x, y int32) int { return b.groups[x].compare(&b.groups[y]) })
	return clock
}

// next appends as many records as fit into limit bytes to buf. It returns the
// message and how many records it says; at 0 there are none left.
func (b *batch) next(buf []byte, limit int, clock uint64, self conntable.NodeID) ([]byte, int) {
	b.enc.reset(buf, limit, clock, self)
	n := 0
	for _, i := range b.order[b.said:] {
		if !b.enc.add(&b.recs[i], &b.groups[i]) {
			break
		}
		n++
	}
	b.said += n
	return b.enc.b, n
}
