package conntable

import (
	"encoding/binary"
	"time"
)

const (
	// walkStep is how many places a walk looks at while it holds a lock.
	walkStep = 256

	eachChunk = 128
)

// A Cursor is how far a walk has come. The zero Cursor is the start of a walk
// in no order.
type Cursor struct {
	shard int
	id    uint32 // the last that was looked at

	ranked bool
	rank   uint8
	since  uint64 // by the clock of versions
}

// What a ranked walk tells first.
const (
	rankLively  = iota // lasting, and told of lately: their clients are there
	rankLasting        // lasting: long timeouts, as of established connections
	rankPassing        // closing connections, short UDP, tombstones
	ranks
)

const (
	livelyFor = time.Minute // since when a lively one was told of
	lastingAt = time.Minute // from which timeout on an entry is lasting
)

// Ranked returns the start of a walk that tells first what a director misses
// most: what lasts and was told of lately, then what lasts, then the rest. It
// looks at all entries three times.
func (t *Table) Ranked() Cursor {
	now := t.clock.Now()
	return Cursor{ranked: true, since: now - min(now, uint64(livelyFor/time.Microsecond))}
}

// CursorSize is the size of a Cursor's binary form in bytes.
const CursorSize = 14

// AppendTo appends the binary form of a ranked walk's cursor: since (64), rank
// (8), shard (8), id (32), big-endian.
func (c *Cursor) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, c.since)
	return binary.BigEndian.AppendUint32(append(b, c.rank, uint8(c.shard)), c.id)
}

// ParseCursor reads what AppendTo wrote, for the same table. It reports false
// for what no cursor is; any other is good.
func ParseCursor(b []byte) (Cursor, bool) {
	if len(b) < CursorSize || b[8] >= ranks || b[9] > shardCount {
		return Cursor{}, false
	}
	return Cursor{
		ranked: true, since: binary.BigEndian.Uint64(b), rank: b[8], shard: int(b[9]), id: binary.BigEndian.Uint32(b[10:]),
	}, true
}

// Walk fills recs with entries, tombstones too, from where c is, and moves c
// on. It returns how many; none are the end. Only entries of the slices in are
// told, or all if in is nil.
//
// What is there all the time is told once. What changes meanwhile may be told
// old or new; what comes or goes meanwhile may be told or not, and so, by a
// ranked walk, what is told of anew meanwhile. A walk keeps nothing in the
// table, so it can be broken off or go on after any time.
func (t *Table) Walk(c *Cursor, in *Slices, recs []Record) int {
	n := 0
	for n < len(recs) && !c.done() {
		if in != nil && !shardHas(in, c.shard) {
			c.nextShard()
			continue
		}
		var end bool
		n, end = t.shards[c.shard].walk(c, in, recs, n, t.now())
		if end {
			c.nextShard()
		}
	}
	return n
}

func (c *Cursor) done() bool { return c.shard >= shardCount }

func (c *Cursor) nextShard() {
	c.shard, c.id = c.shard+1, 0
	if c.shard == shardCount && c.ranked && c.rank < ranks-1 {
		c.shard, c.rank = 0, c.rank+1
	}
}

// wants reports whether e is to be told in this round of the walk. It depends
// on the telling alone, so that one that stays is told once.
func (c *Cursor) wants(s *shard, e *entry) bool {
	if !c.ranked {
		return true
	}
	rank := uint8(rankPassing)
	if !e.deleted() && s.modes.at(e.mode).timeout >= lastingAt {
		rank = rankLasting
		if e.clock >= c.since {
			rank = rankLively
		}
	}
	return rank == c.rank
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
		if e.bits&bitLive == 0 || !c.wants(s, e) || !s.in(in, e) || !s.read(c.id, &recs[n], now) {
			continue
		}
		if e.queues&ToPeers != 0 {
			e.bits |= bitShown
		}
		n++
	}
	return n, c.id >= s.entries.used
}

// in reports whether e is in one of the slices.
func (s *shard) in(slices *Slices, e *entry) bool {
	if slices == nil {
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
