package conntable

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardBits  = 4
	shardCount = 1 << shardBits

	// expireChunk is how many entries Expire deals with while it holds a lock.
	expireChunk = 256

	// shedTries is at how many entries a full table looks for a less useful
	// one.
	shedTries = 16

	maxLimit = 1 << 30
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
	Added    Outcome = iota // the key was not known
	Updated                 // it was, with an older version
	Same                    // this very version was there
	Stale                   // a newer version was there
	Late                    // the record is past its own deadline
	Full                    // the key is not known, and the table full of more useful ones
	Absurd                  // the version is higher than MaxClock
	Extended                // the entry lives on, and nobody need be told (Hear)
	Outcomes
)

var outcomeNames = [Outcomes]string{"added", "updated", "same", "stale", "late", "full", "absurd", "extended"}

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
	ToLegacy                   // our own news, for directors that speak the kernel's protocol
)

// A Ref names an entry for Take. It may outlive the entry.
type Ref struct{ shard, slot int32 }

// A Result says what Apply did and what was there before.
type Result struct {
	Outcome Outcome
	Queued  Queue // the queues that the caller must now put Ref on
	Ref     Ref
	Prev    Prev // for Updated, Same and Stale
	Refresh bool // Updated, and told nothing but that the connection lives on
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
	used   atomic.Int64 // entries and tombstones
	tombs  atomic.Int64
	shed   atomic.Uint64
	clock  *Clock
	slack  time.Duration // for RefuseLate; 0: do not
	shards [shardCount]shard
}

// A shard has all of some slices, so that a slice is one lock's.
type shard struct {
	mu       sync.Mutex
	seed     uint64
	index    index
	entries  arena[entry]
	free     uint32 // head of the free entries, linked by entry.chain
	services interned[service]
	dests    interned[endpoint]
	modes    interned[mode]
	clients  addresses
	extras   map[uint32]extra
	wheel    wheel
	calendar calendar
	_        [64]byte // keeps neighbours' locks apart
}

// New returns an empty Table for at most limit entries, tombstones included;
// limit is at most 1<<30.
func New(limit int) *Table {
	t := &Table{start: time.Now(), limit: int64(min(limit, maxLimit)), clock: NewClock(0)}
	seed := rand.Uint64()
	for i := range t.shards {
		s := &t.shards[i]
		s.seed = seed
		s.index.init()
		s.services.init(seed)
		s.dests.init(seed)
		s.modes.init(seed)
	}
	return t
}

// RefuseLate makes Apply refuse records of which, by clock, the version plus
// the timeout passed longer than slack ago: they come from a node that was
// frozen, and what it says remains is wrong. slack must exceed by how much the
// directors' wall clocks may be wrong, because clock follows the highest of
// them. RefuseLate must be called before the table is used.
func (t *Table) RefuseLate(clock *Clock, slack time.Duration) { t.clock, t.slack = clock, slack }

// Len returns the number of connections, tombstones not counted.
func (t *Table) Len() int { return int(t.used.Load() - t.tombs.Load()) }

// Tombstones returns the number of deleted entries still remembered.
func (t *Table) Tombstones() int { return int(t.tombs.Load()) }

// Limit returns the most entries that the table takes.
func (t *Table) Limit() int { return int(t.limit) }

// Shed returns how many entries had to make room for others since New.
func (t *Table) Shed() uint64 { return t.shed.Load() }

func (t *Table) now() time.Duration { return time.Since(t.start) }

// Apply merges r, and puts the entry on the queues q if that changed it. The
// table keeps r's Seq and PEData, which must not change later. Zones of
// addresses are not kept, and what remains is kept in 1/128 s, at most 194
// days.
//
// News of ours (q has ToPeers) on an entry that still waits to be told to the
// peers may go out under the version that waits (see keepVersion), or may have
// that very version (Clock.Shared).
//
// A full table takes a new key in the place of the entry that would die first,
// of those of its shard, if the new one would live longer.
func (t *Table) Apply(r *Record, q Queue) Result { return t.hear(r, q, 0) }

// Retell is Apply for what tells anew what an entry held that was looked at, and
// had version seen. If there has been news of it since, the Outcome is Stale.
func (t *Table) Retell(seen Version, r *Record, q Queue) Result {
	hash := keyHash(&r.Key)
	s, at := t.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.moment()
	p := s.probe(&r.Key)
	id := s.find(&p)
	if id == 0 {
		return Result{Outcome: Stale}
	}
	// Several news may share a version.
	if has := s.prev(id, r, now.since); has.Version != seen || has.State != r.State || !has.SameTo || has.Deleted != r.Deleted {
		return Result{Outcome: Stale}
	}
	return s.apply(t, at, hash, &p, r, q, 0, &now)
}

// Hear is Apply for news of ours of which the peers need not be told when it
// tells nothing but that a connection lives on, which they were told will live
// for at least half its timeout from now anyway (by the version and the timeout
// that they know): then the Outcome is Extended. The entry lives until r's
// deadline, under the version it has, and the digests, which are of what was
// told, do not change. That is so for timeouts of at least least; 0 stands for
// no such.
func (t *Table) Hear(r *Record, q Queue, least time.Duration) Result { return t.hear(r, q, least) }

func (t *Table) hear(r *Record, q Queue, least time.Duration) Result {
	hash := keyHash(&r.Key)
	at := shardOf(hash)
	s := &t.shards[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.moment()
	p := s.probe(&r.Key)
	return s.apply(t, at, hash, &p, r, q, least, &now)
}

// A moment is now, by all clocks that matter.
type moment struct {
	at    time.Time
	since time.Duration // Table.start
	clock uint64        // of versions
}

func (t *Table) moment() moment {
	at := time.Now()
	return moment{at, at.Sub(t.start), t.clock.at(at)}
}

func (s *shard) apply(t *Table, at int32, hash uint64, p *probe, r *Record, q Queue, least time.Duration, now *moment) Result {
	id := s.find(p)
	res := Result{Ref: Ref{at, int32(id)}}
	if id != 0 {
		if least > 0 && s.prolong(id, r, least, now) {
			res.Outcome = Extended
			return res
		}
		res.Prev = s.prev(id, r, now.since)
		switch c := r.Version.Compare(res.Prev.Version); {
		case c == 0 && q&ToPeers != 0 && s.untold(s.entries.at(id)):
			// More news under the version that it shares.
		case c == 0:
			res.Outcome = Same
			return res
		case c < 0:
			res.Outcome = Stale
			return res
		}
	}
	switch {
	case r.Version.Clock > MaxClock:
		res.Outcome = Absurd
		return res
	case r.Remaining <= 0 || t.late(r, now):
		res.Outcome = Late
		return res
	}
	t.clock.observe(r.Version.Clock, now.at)
	// As the entry will have it, so that the wheel finds it when it is dead.
	until := (now.since + min(r.Remaining, maxRemaining)).Truncate(deadlineTick)
	if id != 0 {
		s.update(t, id, hash, r, q, until, now.since)
		res.Outcome = Updated
		res.Refresh = res.Prev.SameTo && res.Prev.State == r.State && !res.Prev.Deleted && !r.Deleted
	} else {
		if !t.room(s, until, now.since) {
			res.Outcome = Full
			return res
		}
		id = s.put(t, p, hash, r, until)
		res.Outcome, res.Ref.slot = Added, int32(id)
	}
	res.Queued = s.entries.at(id).enqueue(q)
	return res
}

// prolong lets entry id live as long as r says, if the peers need not be told
// of r (see Hear), and reports whether that is so.
func (s *shard) prolong(id uint32, r *Record, least time.Duration, now *moment) bool {
	e := s.entries.at(id)
	if r.Timeout < least || e.clock < LiveClock || e.until(now.since) <= now.since || !s.alike(id, e, r) {
		return false
	}
	age := time.Duration(int64(now.clock-e.clock)) * time.Microsecond
	// A record may have told a shorter life than its timeout: then the peers
	// know no more than this table did.
	if min(s.modes.at(e.mode).timeout-age, e.until(now.since)-now.since) < r.Timeout/2 {
		return false
	}
	e.extend(r.Remaining, now.since)
	return true
}

// alike reports whether r differs from the living entry id, of the same node,
// in nothing but when it ends. What the peers know may be a shorter timeout,
// but of a template, which goes on with it.
func (s *shard) alike(id uint32, e *entry, r *Record) bool {
	m := s.modes.at(e.mode)
	if m.node != r.Version.Node || m.deleted || r.Deleted || m.state != r.State || m.flags != r.Flags || m.fwmark != r.FWMark ||
		m.timeout > r.Timeout || m.timeout < r.Timeout && r.Template {
		return false
	}
	if dest := endpointOf(r.Dest); *s.dests.at(e.dest) != dest {
		return false
	}
	var x extra
	if e.bits&bitExtra != 0 {
		x = s.extras[id]
	}
	return x.equal(r)
}

// Delete makes a tombstone, told by version v, of the entry of k, as Apply
// does. If there is no living entry the Outcome is Late.
func (t *Table) Delete(k Key, v Version, q Queue) Result { return t.remove(&k, nil, v, q) }

// DeleteIf is Delete of an entry that was looked at, unless there has been news
// of it since: then the Outcome is Late, too.
func (t *Table) DeleteIf(seen *Record, v Version, q Queue) Result {
	return t.remove(&seen.Key, &seen.Version, v, q)
}

func (t *Table) remove(k *Key, seen *Version, v Version, q Queue) Result {
	hash := keyHash(k)
	s, at := t.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.moment()
	p := s.probe(k)
	var r Record
	if id := s.find(&p); id == 0 || !s.read(id, &r, now.since) || r.Deleted || seen != nil && r.Version != *seen {
		return Result{Outcome: Late}
	}
	r.Version, r.Deleted = v, true
	r.Seq, r.PEName, r.PEData = nil, "", nil
	// In whole seconds, as it travels.
	r.Timeout = (r.Remaining + time.Second - 1).Truncate(time.Second)
	return s.apply(t, at, hash, &p, &r, q, 0, &now)
}

// Extend lets the connection of k live until remaining from now, if that is
// later than its deadline, under the version it has: for what the peers need
// not be told, as of Hear. It reports whether there is a living connection.
func (t *Table) Extend(k Key, remaining time.Duration) bool {
	s, _ := t.shard(keyHash(&k))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	p := s.probe(&k)
	id := s.find(&p)
	if id == 0 {
		return false
	}
	e := s.entries.at(id)
	if until := e.until(now); until <= now || e.deleted() {
		return false
	}
	e.extend(remaining, now)
	return true
}

// extend moves e's deadline to remaining from now, if that is later. The wheel
// finds out when e would have died before.
func (e *entry) extend(remaining, now time.Duration) {
	e.deadline = toTick(max(e.until(now), now+min(remaining, maxRemaining)))
}

// enqueue puts e on the queues q, and returns on which of them it was not.
func (e *entry) enqueue(q Queue) Queue {
	added := q &^ e.queues
	e.queues |= q
	if added&ToPeers != 0 {
		e.bits &^= bitShown
	}
	return added
}

func (t *Table) late(r *Record, now *moment) bool {
	return t.slack > 0 && r.Version.Clock >= LiveClock &&
		now.clock > r.Version.Clock+uint64(max(0, r.Timeout+t.slack)/time.Microsecond)
}

func (s *shard) prev(id uint32, r *Record, now time.Duration) Prev {
	e := s.entries.at(id)
	m := s.modes.at(e.mode)
	dest := endpointOf(r.Dest)
	return Prev{Version{e.clock, m.node}, e.until(now) - now, m.state, e.deleted(), *s.dests.at(e.dest) == dest}
}

// update puts a newer telling in the place of entry id's.
func (s *shard) update(t *Table, id uint32, hash uint64, r *Record, q Queue, until, now time.Duration) {
	e := s.entries.at(id)
	m := s.modes.at(e.mode)
	old := termOf(hash, Version{e.clock, m.node}, m.timeout)
	v := r.Version
	if q&ToPeers != 0 && s.keepVersion(e, r.Version) {
		v.Clock = e.clock
	}
	dest, mode := endpointOf(r.Dest), modeOf(r, v)
	s.dests.swap(&e.dest, &dest)
	s.modes.swap(&e.mode, &mode)
	e.clock, e.deadline = v.Clock, toTick(until)
	s.tell(t, id, e, r)
	s.wheel.set(&s.entries, id, until)
	s.count(hash, &old, v, r.Timeout)
}

// keepVersion reports whether news of version v is to take over the version of
// e, which waits to be told to the peers: v is of a later tick of the horizon.
//
// The peers will never hear of the state that waits, so at a horizon between
// the two they would have none of them, and we the one that waits. Under the
// older version, which stands for nothing else as long as nobody was told,
// both have the new one. The two are no more than a tick apart, and a third
// version between them would be of a node that had not heard of either.
func (s *shard) keepVersion(e *entry, v Version) bool {
	return s.untold(e) && s.modes.at(e.mode).node == v.Node &&
		v.Clock>>horizonBits != e.clock>>horizonBits && v.Clock-e.clock < HorizonTick
}

// untold reports whether e is news of ours that nobody was told yet.
func (s *shard) untold(e *entry) bool {
	return e.queues&ToPeers != 0 && e.bits&bitShown == 0 && e.clock >= LiveClock
}

// put makes an entry of r, which p did not find.
func (s *shard) put(t *Table, p *probe, hash uint64, r *Record, until time.Duration) uint32 {
	id, e := s.create(&r.Key, p)
	dest, mode := endpointOf(r.Dest), modeOf(r, r.Version)
	e.dest, e.mode = s.dests.hold(&dest), s.modes.hold(&mode)
	e.clock, e.deadline = r.Version.Clock, toTick(until)
	s.tell(t, id, e, r)
	s.wheel.add(&s.entries, id, until)
	s.count(hash, &term{}, r.Version, r.Timeout)
	return id
}

// tell keeps what of r is neither in the entry's numbers nor interned.
func (s *shard) tell(t *Table, id uint32, e *entry, r *Record) {
	s.setExtra(id, e, r)
	if r.Deleted == e.deleted() {
		return
	}
	e.bits ^= bitDeleted
	if r.Deleted {
		t.tombs.Add(1)
	} else {
		t.tombs.Add(-1)
	}
}

// count puts the telling v in the digests in the place of old.
func (s *shard) count(hash uint64, old *term, v Version, timeout time.Duration) {
	if v.Clock < LiveClock {
		return // nor was what it is newer than in them
	}
	now := termOf(hash, v, timeout)
	s.calendar.replace(sliceIn(hash), old, &now, enterOf(v))
}

// Queue puts the entry of k on the queues q as Apply does, and reports which
// of them the caller must put ref on.
func (t *Table) Queue(k Key, q Queue) (ref Ref, queued Queue) {
	s, at := t.shard(keyHash(&k))
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.probe(&k)
	id := s.find(&p)
	if id == 0 {
		return ref, 0
	}
	return Ref{at, int32(id)}, s.entries.at(id).enqueue(q)
}

// Take takes the entry at ref off queue q and copies its newest state to r. It
// reports false when there is nothing to do: the entry is gone, past its
// deadline, or not on q.
func (t *Table) Take(ref Ref, q Queue, r *Record) bool {
	s := &t.shards[ref.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(uint32(ref.slot), q, r, t.now())
}

func (s *shard) take(id uint32, q Queue, r *Record, now time.Duration) bool {
	if id == 0 || id > s.entries.used || s.entries.at(id).queues&q == 0 {
		return false
	}
	s.entries.at(id).queues &^= q
	return s.read(id, r, now)
}

// markShift is where the marks of queues are in an entry's bits of them.
const markShift = 4

// Mark marks the entry at ref for queue q, and reports whether that stands on q
// and was not marked. So who keeps the Refs of q can tell those of entries that
// are gone, and those that he has twice since another entry took the place of
// one.
func (t *Table) Mark(ref Ref, q Queue) bool {
	s := &t.shards[ref.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries.at(uint32(ref.slot))
	if e.queues&q == 0 || e.queues&(q<<markShift) != 0 {
		return false
	}
	e.queues |= q << markShift
	return true
}

// Unmark takes Mark's mark away.
func (t *Table) Unmark(ref Ref, q Queue) {
	s := &t.shards[ref.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries.at(uint32(ref.slot)).queues &^= q << markShift
}

// Lookup copies the entry of k to r, if there is one that lives.
func (t *Table) Lookup(k Key, r *Record) bool {
	s, _ := t.shard(keyHash(&k))
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.probe(&k)
	id := s.find(&p)
	return id != 0 && s.read(id, r, t.now())
}

// lingerTicks is by how much a term may outlive its entry.
const lingerTicks = 4

func (t *Table) shard(hash uint64) (*shard, int32) {
	at := shardOf(hash)
	return &t.shards[at], at
}

func shardOf(hash uint64) int32 { return int32(hash>>(64-sliceBits)) % shardCount }

// sliceIn returns the slice of a key of this hash, as its shard numbers them.
func sliceIn(hash uint64) int { return int(hash>>(64-sliceBits)) / shardCount }
