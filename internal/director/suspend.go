package director

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepShort is what counts as no sleep: the two clocks are not read at once.
const sleepShort = 20 * time.Millisecond

// A sleepClock tells how long this machine was suspended. All other clocks here
// stand still meanwhile, those that the kernel holds the lease by too, while the
// others' go on. The zero value is ready.
type sleepClock struct {
	slept time.Duration // since the machine's start, as last seen
	known bool
	read  func(clock int32) time.Duration // nil: the kernel's
}

// more reports whether the machine was suspended since the last call.
func (c *sleepClock) more() bool {
	read := c.read
	if read == nil {
		read = readClock
	}
	// In this order time between the two counts as none.
	boot := read(unix.CLOCK_BOOTTIME)
	slept := boot - read(unix.CLOCK_MONOTONIC)
	more := c.known && slept-c.slept > sleepShort
	c.slept, c.known = max(slept, c.slept), true
	return more
}

func readClock(clock int32) time.Duration {
	var t unix.Timespec
	// It fails only for clocks that there are not.
	_ = unix.ClockGettime(clock, &t)
	return time.Duration(t.Nano())
}
