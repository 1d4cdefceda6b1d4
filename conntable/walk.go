package conntable

import "time"

const (
	// walkStep is how many places a walk looks at while it holds a lock.
	walkStep = 256

	eachChunk = 128
)

// A Cursor is how far a walk has come. The zero Cursor is the start.
type Cursor struct {
	shard int
	id    uint32 // the last that was looked at
}

// Walk fills recs with entries, tombstones too, from where c is, and moves c
// on. It returns how many; none are the end. Only entries of the slices in are
// told, or all if in is nil.
//
// What is there all the time is told once. What changes meanwhile may be told
// old or new; what comes or goes meanwhile may be told or not. A walk keeps
// nothing in the table, so it can be broken off or go on after any time.
func (t *Table) Walk(c *Cursor, in *Slices, recs []Record) int {
	n := 0
	for n < len(recs) && c.shard < shardCount {
		if in != nil && !shardHas(in, c.shard) {
			*c = Cursor{shard: c.shard + 1}
			continue
		}
		var end bool
		n, end = t.shards[c.shard].walk(c, in, recs, n, t.now())
		if end {
			*c = Cursor{shard: c.shard + 1}
		}
	}
	return n
}

// walk looks at some entries, and puts them into recs from n on. It returns
// the new n, and whether the shard has no more.
func (s *shard) walk(c *Cursor, in *Slices, recs []Record, n int, now time.Duration) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range walkStep {
		if c.id >= s.entries.used {
			return n, true
		}
		if n == len(recs) {
			break
		}
		c.id++
		e := s.entries.at(c.id)
		if !s.in(in, e) || !s.read(c.id, &recs[n], now) {
			continue
		}
		if e.queues&ToPeers != 0 {
			e.bits |= bitShown
		}
		n++
	}
	return n, c.id >= s.entries.used
}

// in reports whether e, if it is one, is in one of the slices.
func (s *shard) in(slices *Slices, e *entry) bool {
	if slices == nil || e.bits&bitLive == 0 {
		return true
	}
	k := s.key(e)
	return slices.Has(SliceOf(&k))
}

// shardHas reports whether any slice of shard n is in in.
func shardHas(in *Slices, n int) bool {
	for i := n; i < SliceCount; i += shardCount {
		if in.Has(i) {
			return true
		}
	}
	return false
}

// Each calls yield with every entry as Walk tells them, until it returns
// false. yield may use the table; r is its own until it returns.
func (t *Table) Each(yield func(r *Record) bool) {
	recs := make([]Record, eachChunk)
	var c Cursor
	for {
		n := t.Walk(&c, nil, recs)
		if n == 0 {
			return
		}
		for i := range n {
			if !yield(&recs[i]) {
				return
			}
		}
	}
}
