package conntable

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// A NodeID names a director in versions. It is a digest of the node's name,
// so a node keeps it over restarts.
type NodeID uint32

// NodeIDOf returns the NodeID of the node called name. It is never 0.
func NodeIDOf(name string) NodeID {
	sum := sha256.Sum256([]byte("saru node v1\x00" + name))
	return NodeID(max(1, binary.BigEndian.Uint32(sum[:])))
}

// A Version orders all records of one connection. The zero Version is older
// than any other.
type Version struct {
	Clock uint64 // hybrid logical clock, microseconds since 1970
	Node  NodeID // who made it
}

// Compare returns -1, 0 or 1 as v is older than, the same as or newer than w.
func (v Version) Compare(w Version) int {
	if c := cmp.Compare(v.Clock, w.Clock); c != 0 {
		return c
	}
	return cmp.Compare(v.Node, w.Node)
}

const (
	// MaxClock is the highest Version.Clock that is believed; it leaves the
	// clock room to count on after the worst peer.
	MaxClock = 1 << 60

	// LiveClock is lower than the clock of any version that a Clock makes.
	// Below it are versions of entries whose history is not known: what a
	// daemon finds in its kernel at start (see FoundVersion).
	LiveClock = 1 << 42 // 1970-02-20
)

// FoundVersion returns the version of an entry that node found in its kernel
// with so much time remaining: older than whatever a living syncd said, and
// among findings the fresher one wins.
func FoundVersion(node NodeID, remaining time.Duration) Version {
	return Version{uint64(min(max(remaining/time.Microsecond, 1), LiveClock-1)), node}
}

// A Clock makes one node's versions. It is a hybrid logical clock (Kulkarni et
// al., "Logical Physical Clocks", 2014) in one number: microseconds that never
// go back, never repeat, and are above all that was observed. It is safe for
// concurrent use.
//
// It goes on at the pace of time from the highest reading there was, of any
// node: where one director's wall clock is an hour ahead, or is set back, all
// directors' clocks still tell seconds apart, as horizons need it.
type Clock struct {
	node  NodeID
	start time.Time
	ahead atomic.Uint64 // what the clock read at start, as far as is known now
	last  atomic.Uint64
	share atomic.Uint64 // the version that Shared gave last
}

// NewClock returns the Clock of node.
func NewClock(node NodeID) *Clock { return &Clock{node: node, start: time.Now()} }

// Node returns whose clock it is.
func (c *Clock) Node() NodeID { return c.node }

// Next returns a version higher than all before.
func (c *Clock) Next() Version {
	for {
		last := c.last.Load()
		t := max(c.paced(time.Now()), last+1)
		if c.last.CompareAndSwap(last, t) {
			return Version{t, c.node}
		}
	}
}

// Shared returns one version for all news until Turn is called: news of many
// connections that is told together says what all have in common once. Who
// shares must call Turn whenever something was told, and soon after the first
// news. Versions order the tellings of one connection only, so who tells of the
// same one again must use Next if it has the shared version, or a higher one,
// and was told.
func (c *Clock) Shared() Version {
	v := c.share.Load()
	if v == 0 {
		v = c.Next().Clock
		c.share.Store(v)
	}
	return Version{v, c.node}
}

// Turn makes Shared return a new version.
func (c *Clock) Turn() { c.share.Store(0) }

// Now returns the clock's reading without making a version.
func (c *Clock) Now() uint64 { return c.at(time.Now()) }

func (c *Clock) at(now time.Time) uint64 { return max(c.paced(now), c.last.Load()) }

// Observe makes all versions to come higher than clock. A reading over
// MaxClock is not believed.
func (c *Clock) Observe(clock uint64) { c.observe(clock, time.Now()) }

func (c *Clock) observe(clock uint64, now time.Time) {
	if clock <= c.last.Load() || clock > MaxClock {
		return
	}
	raise(&c.last, clock)
	if clock > wall(now) {
		raise(&c.ahead, clock-min(clock, c.since(now)))
	}
}

// paced is the clock but for what was observed just now: the wall clock, or
// the time since start on the highest reading.
func (c *Clock) paced(now time.Time) uint64 {
	w, ahead := wall(now), c.ahead.Load()
	if paced := ahead + c.since(now); w <= paced {
		return paced
	}
	// The wall clock may be set back one day.
	raise(&c.ahead, w-min(w, c.since(now)))
	return w
}

func (c *Clock) since(now time.Time) uint64 {
	return uint64(max(0, now.Sub(c.start)) / time.Microsecond)
}

func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if to <= old || v.CompareAndSwap(old, to) {
			return
		}
	}
}

func wall(now time.Time) uint64 { return max(LiveClock, uint64(max(0, now.UnixMicro()))) }
