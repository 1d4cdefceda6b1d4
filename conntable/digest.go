package conntable

import (
	"encoding/binary"
	"math/bits"
	"time"
)

const (
	// SliceCount is into how many slices the key space is divided.
	SliceCount = 1024

	// HorizonTick is the step of horizons, in the microseconds of
	// Version.Clock: a horizon stands for the last tick that ended by it.
	HorizonTick = 1 << horizonBits
	horizonBits = 20

	// HorizonReach is how far back of the newest version a horizon may lie.
	HorizonReach = reachTicks * HorizonTick
	reachTicks   = 32

	sliceBits   = 10
	shardSlices = SliceCount / shardCount
)

// SliceOf returns the slice of k, the same on all nodes.
func SliceOf(k *Key) int { return int(keyHash(k) >> (64 - sliceBits)) }

// Digests are the digests of all slices at one horizon. Those of tables that
// hold the same are the same.
type Digests [SliceCount]uint64

// Sum returns one number for all of them.
func (d *Digests) Sum() uint64 {
	var h uint64
	for _, s := range d {
		h = mix(h, s)
	}
	return h
}

// Diff returns the slices in which d and e differ.
func (d *Digests) Diff(e *Digests) Slices {
	var diff Slices
	for i := range d {
		if d[i] != e[i] {
			diff.Add(i)
		}
	}
	return diff
}

// Slices is a set of slices.
type Slices [SliceCount / 64]uint64

// Add adds slice i.
func (s *Slices) Add(i int) { s[i/64] |= 1 << (i % 64) }

// Has reports whether slice i is in s.
func (s *Slices) Has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

// Len returns the number of slices in s.
func (s *Slices) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Digests fills d with the digests at horizon, a reading of Version.Clock. It
// reports false if it is too late for that: a higher horizon was asked for
// before, or versions more than HorizonReach above it are here.
func (t *Table) Digests(horizon uint64, d *Digests) bool {
	tick := int64(min(horizon, MaxClock)>>horizonBits) - 1
	for i := range t.shards {
		if !t.shards[i].digests(i, tick, d) {
			return false
		}
	}
	return true
}

func (s *shard) digests(n int, tick int64, d *Digests) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calendar.folded > tick {
		return false
	}
	s.calendar.fold(tick)
	for j, sum := range s.calendar.sums {
		d[j*shardCount+n] = sum
	}
	return true
}

// A term is the part of one telling in its slice's digest: the sum has it
// from tick enter on and loses it with tick leave.
//
// leave is the quantised deadline. It follows from the version and the timeout
// alone, never from what a node's own clock says remains, so that all nodes
// drop the term between the same two horizons, though they expire the entry at
// slightly different moments; it comes a little before any of these.
type term struct {
	sum          uint64
	enter, leave int64 // ticks of Version.Clock
	level        uint8 // of the calendar, for leave
}

const (
	calendarLevels = 7
	calendarSlots  = 64

	// forever is the leave of what lives longer than the calendar reaches, 101
	// days.
	forever = 1<<63 - 1

	// Two ticks and 1/1024 of the timeout: a telling's way to the peers, and
	// the difference of the rates of their clocks.
	leaveTicks = 2
	leaveShare = 1024
)

// LegacyNode is whose versions the words of directors get that speak the
// kernel's own protocol. No node is called so: names have no spaces.
var LegacyNode = NodeIDOf("legacy directors")

// LegacyLag is how old such a word may be when it comes, and its version says
// that it is: a kernel sends a buffer that is not full after 2 s, and looks once
// a second (include/net/ip_vs.h, IPVS_SYNC_FLUSH_TIME, IPVS_SYNC_CHECK_PERIOD).
const LegacyLag = 3 * time.Second

// legacyTicks is LegacyLag, rounded up.
const legacyTicks = (int64(LegacyLag/time.Microsecond) + HorizonTick - 1) >> horizonBits

// enterOf returns the tick with which a telling of version v comes. It is that
// of the version; but a legacy director's word is told so much later, and would
// miss the horizon of its version everywhere but where it was heard.
func enterOf(v Version) int64 {
	tick := int64(v.Clock >> horizonBits)
	if v.Node == LegacyNode {
		tick += legacyTicks
	}
	return tick
}

// termOf returns the term of a telling of the key of this hash. That of a
// found entry is empty: its version says nothing of when it was told.
func termOf(hash uint64, v Version, timeout time.Duration) term {
	if v.Clock < LiveClock {
		return term{}
	}
	life := uint64(max(0, timeout) / time.Microsecond)
	tm := term{sum: mix(mix(hash, v.Clock), uint64(v.Node)), enter: enterOf(v), leave: forever}
	ticks := int64(life >> horizonBits)
	for level := range uint8(calendarLevels) {
		if ticks < calendarSlots/2<<(3*level) {
			last := int64((v.Clock+life-life/leaveShare)>>horizonBits) - leaveTicks
			tm.level, tm.leave = level, last&^(1<<(3*level)-1)
			break
		}
	}
	if tm.leave <= tm.enter {
		return term{}
	}
	return tm
}

// A calendar holds the digests of a shard's slices at tick folded, and what
// will change them in the ticks after it.
//
// Sums are exclusive ors: a term goes out as it came in, and what a tick does
// to a slice is one number however many terms come and go with it. So a change
// of the table costs a few exclusive ors, nothing is kept per change, and
// nothing is looked for when a horizon is asked for.
//
// Level l has 64 slots of 8^l ticks. Ticks to come within HorizonReach are
// told apart; a deadline further away is kept with the precision of its level,
// between 1/4 and 1/32 of the timeout.
type calendar struct {
	folded int64
	sums   [shardSlices]uint64
	levels [calendarLevels]*[calendarSlots][shardSlices]uint64
}

// flip adds sum to the slice with tick, which must be a multiple of 8^level
// and within the level's reach, or at once if that is over. Another flip takes
// it back.
func (c *calendar) flip(slice int, sum uint64, tick int64, level uint8) {
	switch {
	case tick == forever:
	case tick <= c.folded:
		c.sums[slice] ^= sum
	default:
		if c.levels[level] == nil {
			c.levels[level] = new([calendarSlots][shardSlices]uint64)
		}
		c.levels[level][(tick>>(3*level))%calendarSlots][slice] ^= sum
	}
}

// replace puts a telling's term in the place of the one before it. The sum at
// each horizon has what was the newest telling at that horizon: the old term
// leaves with the tick in which enter, the new telling's tick, comes, and not
// when the news came. So it does not matter when, how often and with how many
// of the tellings between. (But for a node's own telling just after a legacy
// director's, which is not to come yet: until then two tables may differ.)
func (c *calendar) replace(slice int, old, now *term, enter int64) {
	c.fold(enter - reachTicks)
	enter = max(enter, old.enter)
	if old.sum != 0 && old.leave > enter {
		c.flip(slice, old.sum, old.leave, old.level)
		c.flip(slice, old.sum, enter, 0)
	}
	if now.sum != 0 {
		c.flip(slice, now.sum, now.enter, 0)
		c.flip(slice, now.sum, now.leave, now.level)
	}
}

// drop takes a term away as if it had never been.
func (c *calendar) drop(slice int, tm *term) {
	if tm.sum != 0 {
		c.flip(slice, tm.sum, tm.enter, 0)
		c.flip(slice, tm.sum, tm.leave, tm.level)
	}
}

// fold brings the sums to tick. It costs at most a turn of all levels, however
// far that is.
func (c *calendar) fold(tick int64) {
	if tick <= c.folded {
		return
	}
	for l, slots := range c.levels {
		if slots == nil {
			continue
		}
		from, to := c.folded>>(3*l), tick>>(3*l)
		for n := max(from, to-calendarSlots) + 1; n <= to; n++ {
			slot := &slots[n%calendarSlots]
			for i := range slot {
				c.sums[i] ^= slot[i]
			}
			*slot = [shardSlices]uint64{}
		}
	}
	c.folded = tick
}

// keyHash is the hash of k that all nodes agree on.
func keyHash(k *Key) uint64 {
	client, virtual := k.Client.Addr().As16(), k.Virtual.Addr().As16()
	var kind uint64
	if k.Template {
		kind = 1
	}
	kind = kind<<2 | uint64(familyOf(k.Client.Addr()))
	h := mix(0, binary.BigEndian.Uint64(client[:8]))
	h = mix(h, binary.BigEndian.Uint64(client[8:]))
	h = mix(h, binary.BigEndian.Uint64(virtual[:8]))
	h = mix(h, binary.BigEndian.Uint64(virtual[8:]))
	return mix(h, uint64(k.Client.Port())<<32|uint64(k.Virtual.Port())<<16|uint64(k.Protocol)<<8|kind)
}

// mix folds v into h (the multiplier is 2^64 over the golden ratio).
func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^v^0x9e3779b97f4a7c15, 0x9e3779b97f4a7c15)
	return (hi ^ lo) + v
}
