package conntable

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardBits  = 6
	shardCount = 1 << shardBits

	// eachChunk is how many entries Each copies while it holds a shard.
	eachChunk = 128
)

// A Record is one telling of a connection.
type Record struct {
	Connection
	Version   Version
	Remaining time.Duration // until the entry dies by itself, from now
	Deleted   bool          // the connection is gone
}

// An Outcome is what Apply did with a record.
type Outcome uint8

// Outcomes.
const (
	Added   Outcome = iota // the key was not known
	Updated                // it was, with an older version
	Same                   // this very version was there
	Stale                  // a newer version was there
	Late                   // the record is past its own deadline
	Full                   // the table is at its limit and the key not known
	Outcomes
)

var outcomeNames = [Outcomes]string{"added", "updated", "same", "stale", "late", "full"}

func (o Outcome) String() string { return outcomeNames[o] }

// A Queue is a set of bits, one for each reader that wants to see every
// entry's newest state once after it changed. The table remembers for each
// entry on which queues it stands, so that an entry that changes again before
// its turn is not queued twice.
type Queue uint8

// Queues.
const (
	ToPeers  Queue = 1 << iota // our own news, for the peers
	ToKernel                   // the peers' news, for our kernel
)

// A Ref names an entry for Take. It may outlive the entry.
type Ref struct{ shard, slot int32 }

// A Result says what Apply did and what was there before.
type Result struct {
	Outcome Outcome
	Queued  Queue // the queues that the caller must now put Ref on
	Ref     Ref
	Prev    Prev // for Updated, Same and Stale
}

// Prev is what a key held before Apply.
type Prev struct {
	Version   Version
	Remaining time.Duration
	State     uint16
	Deleted   bool
	SameTo    bool // it had the record's real server
}

// A Table is the mirror. It is safe for concurrent use.
type Table struct {
	start  time.Time // deadlines count from here, on the monotonic clock
	limit  int64
	seed   uint64
	used   atomic.Int64 // entries and tombstones
	tombs  atomic.Int64
	shards [shardCount]shard
}

type shard struct {
	mu      sync.Mutex
	index   map[key]int32
	entries []entry
	free    int32 // head of the free list by entry.next, or none
	wheel   wheel
	_       [64]byte // keeps neighbours' locks apart
}

type entry struct {
	conn     Connection
	version  Version
	deadline time.Duration // since Table.start
	next     int32         // in the wheel's slot or the free list
	prev     int32
	slot     int32 // of the wheel
	queues   Queue
	deleted  bool
	live     bool // not on the free list
}

const none int32 = -1

// New returns an empty Table for at most limit entries, tombstones included.
func New(limit int) *Table {
	t := &Table{start: time.Now(), limit: int64(limit), seed: rand.Uint64()}
	for i := range t.shards {
		s := &t.shards[i]
		s.index = map[key]int32{}
		s.free = none
		s.wheel.init()
	}
	return t
}

// Len returns the number of connections, tombstones not counted.
func (t *Table) Len() int { return int(t.used.Load() - t.tombs.Load()) }

// Tombstones returns the number of deleted entries still remembered.
func (t *Table) Tombstones() int { return int(t.tombs.Load()) }

// Limit returns the most entries that the table takes.
func (t *Table) Limit() int { return int(t.limit) }

// Apply merges r, and puts the entry on the queues q if that changed it. The
// table keeps r's Seq and PEData, which must not change later. For known keys
// it does not allocate.
func (t *Table) Apply(r *Record, q Queue) Result {
	k := pack(r.Key)
	s, at := t.shard(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Since(t.start)
	slot, known := s.index[k]
	res := Result{Ref: Ref{at, slot}}
	if known {
		e := &s.entries[slot]
		res.Prev = Prev{e.version, e.deadline - now, e.conn.State, e.deleted, e.conn.Dest == r.Dest}
		switch c := r.Version.Compare(e.version); {
		case c == 0:
			res.Outcome = Same
			return res
		case c < 0:
			res.Outcome = Stale
			return res
		}
	}
	if r.Remaining <= 0 {
		res.Outcome = Late
		return res
	}
	if !known {
		if t.used.Add(1) > t.limit {
			t.used.Add(-1)
			res.Outcome = Full
			return res
		}
		slot = s.alloc()
		s.index[k] = slot
		res.Ref.slot = slot
	}
	e := &s.entries[slot]
	if r.Deleted != e.deleted {
		if r.Deleted {
			t.tombs.Add(1)
		} else {
			t.tombs.Add(-1)
		}
	}
	e.conn, e.version, e.deleted = r.Connection, r.Version, r.Deleted
	e.deadline = now + r.Remaining
	s.wheel.place(s.entries, slot)
	res.Queued = q &^ e.queues
	e.queues |= q
	res.Outcome = Updated
	if !known {
		res.Outcome = Added
	}
	return res
}

// Queue puts the entry of k on the queues q as Apply does, and reports which
// of them the caller must put ref on.
func (t *Table) Queue(k Key, q Queue) (ref Ref, queued Queue) {
	pk := pack(k)
	s, at := t.shard(&pk)
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, ok := s.index[pk]
	if !ok {
		return ref, 0
	}
	e := &s.entries[slot]
	queued = q &^ e.queues
	e.queues |= q
	return Ref{at, slot}, queued
}

// Take takes the entry at ref off queue q and copies its newest state to r. It
// reports false when there is nothing to do: the entry is gone, past its
// deadline, or not on q.
func (t *Table) Take(ref Ref, q Queue, r *Record) bool {
	s := &t.shards[ref.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &s.entries[ref.slot]
	if !e.live || e.queues&q == 0 {
		return false
	}
	e.queues &^= q
	return e.record(r, time.Since(t.start))
}

// Lookup copies the entry of k to r, if there is one that lives.
func (t *Table) Lookup(k Key, r *Record) bool {
	pk := pack(k)
	s, _ := t.shard(&pk)
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, ok := s.index[pk]
	return ok && s.entries[slot].record(r, time.Since(t.start))
}

// Each calls yield with every entry, tombstones too, until it returns false.
// What changes meanwhile may be told old, new, or not at all if it is new.
// yield may use the table; r is its own until it returns.
func (t *Table) Each(yield func(r *Record) bool) {
	buf := make([]Record, 0, eachChunk)
	for i := range t.shards {
		s := &t.shards[i]
		for from := 0; ; from += eachChunk {
			var more bool
			buf, more = s.copyChunk(buf[:0], from, time.Since(t.start))
			for j := range buf {
				if !yield(&buf[j]) {
					return
				}
			}
			if !more {
				break
			}
		}
	}
}

func (s *shard) copyChunk(buf []Record, from int, now time.Duration) ([]Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := min(from+eachChunk, len(s.entries))
	for i := from; i < to; i++ {
		var r Record
		if e := &s.entries[i]; e.live && e.record(&r, now) {
			buf = append(buf, r)
		}
	}
	return buf, to < len(s.entries)
}

// Expire drops all entries whose deadline has passed, and returns how many.
// Call it about once a second.
func (t *Table) Expire() int {
	n := 0
	now := time.Since(t.start)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += s.expire(t, now)
		s.mu.Unlock()
	}
	return n
}

func (s *shard) expire(t *Table, now time.Duration) int {
	n := 0
	for slot := range s.wheel.due(s.entries, now) {
		e := &s.entries[slot]
		delete(s.index, pack(e.conn.Key))
		if e.deleted {
			t.tombs.Add(-1)
		}
		*e = entry{next: s.free}
		s.free = slot
		n++
	}
	t.used.Add(-int64(n))
	return n
}

// Digest returns a checksum over the keys and versions of all entries that
// live, are told by a version from after LiveClock up to horizon, and do not
// die within margin. Two tables that hold the same have the same digest.
func (t *Table) Digest(horizon uint64, margin time.Duration) uint64 {
	var d uint64
	t.Each(func(r *Record) bool {
		if r.Version.Clock >= LiveClock && r.Version.Clock <= horizon && r.Remaining > margin {
			k := pack(r.Key)
			h := k.hash(uint64(r.Version.Node))
			d ^= mix(h, r.Version.Clock)
		}
		return true
	})
	return d
}

func (e *entry) record(r *Record, now time.Duration) bool {
	if e.deadline <= now {
		return false
	}
	*r = Record{e.conn, e.version, e.deadline - now, e.deleted}
	return true
}

func (s *shard) alloc() int32 {
	if s.free == none {
		s.entries = append(s.entries, entry{})
		s.free = int32(len(s.entries) - 1)
		s.entries[s.free].next = none
	}
	slot := s.free
	s.free = s.entries[slot].next
	s.entries[slot] = entry{live: true, slot: none}
	return slot
}

func (t *Table) shard(k *key) (*shard, int32) {
	at := int32(k.hash(t.seed) >> (64 - shardBits))
	return &t.shards[at], at
}

// A key is a Key without pointers, so that the index costs the collector
// nothing.
type key struct {
	client, virtual [16]byte
	cport, vport    uint16
	protocol        uint8
	kind            uint8
}

const (
	kindTemplate = 1 << iota
	kind4
)

func pack(k Key) key {
	p := key{
		client: k.Client.Addr().As16(), virtual: k.Virtual.Addr().As16(),
		cport: k.Client.Port(), vport: k.Virtual.Port(), protocol: k.Protocol,
	}
	if k.Template {
		p.kind |= kindTemplate
	}
	if k.Client.Addr().Is4() {
		p.kind |= kind4
	}
	return p
}

func (k *key) hash(seed uint64) uint64 {
	h := mix(seed, word(k.client[:8]))
	h = mix(h, word(k.client[8:]))
	h = mix(h, word(k.virtual[:8]))
	h = mix(h, word(k.virtual[8:]))
	return mix(h, uint64(k.cport)<<32|uint64(k.vport)<<16|uint64(k.protocol)<<8|uint64(k.kind))
}

func word(b []byte) uint64 {
	_ = b[7]
	return uint64(b[0])<<56 | uint64(b[1])<<48 | uint64(b[2])<<40 | uint64(b[3])<<32 |
		uint64(b[4])<<24 | uint64(b[5])<<16 | uint64(b[6])<<8 | uint64(b[7])
}

// mix folds v into h (the multiplier is 2^64 over the golden ratio).
func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^v^0x9e3779b97f4a7c15, 0x9e3779b97f4a7c15)
	return (hi ^ lo) + v
}
