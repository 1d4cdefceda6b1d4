package director

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/membership"
	"saru/partition"
)

// Only a suspension is one: no start on a machine that has slept before, and no
// thread that waits between reading the two clocks.
func TestSleepClock(t *testing.T) {
	var boot, monotonic time.Duration = time.Hour, time.Minute
	c := sleepClock{read: func(clock int32) time.Duration {
		if clock == unix.CLOCK_BOOTTIME {
			return boot
		}
		return monotonic
	}}
	for _, s := range []struct {
		what  string
		boot  time.Duration
		other time.Duration
		more  bool
	}{
		{"the first look", 0, 0, false},
		{"awake", time.Second, time.Second, false},
		{"suspended", 2 * time.Second, time.Second, true},
		{"awake since", time.Second, time.Second, false},
		{"held up between the clocks", 0, 300 * time.Millisecond, false},
		{"and no more", 300 * time.Millisecond, 0, false},
		{"suspended for a moment", 30 * time.Millisecond, 0, true},
	} {
		boot, monotonic = boot+s.boot, monotonic+s.other
		if got := c.more(); got != s.more {
			t.Errorf("%s: %v", s.what, got)
		}
	}
	var real sleepClock
	for range 2 {
		if real.more() {
			t.Error("this machine was suspended just now")
		}
	}
}

// Who was suspended closes its share at once, and joins anew.
func TestSuspendedClosesItsShare(t *testing.T) {
	p := newPair(t)
	p.serving(t)
	e := p.engines[0]
	var slept time.Duration
	e.sleep = sleepClock{read: func(clock int32) time.Duration {
		if clock == unix.CLOCK_BOOTTIME {
			return slept
		}
		return 0
	}}
	p.beat()
	if s := e.core.Snapshot(e.now()); s.Open.Empty() {
		t.Fatalf("it serves nothing: %+v", s)
	}
	slept = time.Minute
	e.nextTick = 0
	e.turn()
	if s := e.core.Snapshot(e.now()); s.Open != (partition.Set{}) || s.State == membership.Ready {
		t.Errorf("after a suspension it is %v and has %v open", s.State, s.Open)
	}
}
