package main

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A machine that is frozen as a whole, its clocks too, takes packets for a
// moment by the time before: the one thing that a lease cannot bound (docs:
// drain first). An emulated machine freezes whenever the real one is busy.

const (
	freezeLook  = 5 * time.Millisecond
	freezeLong  = 100 * time.Millisecond // what counts as one
	freezeAfter = 50 * time.Millisecond  // until all clocks agree again
)

type freezes struct {
	mu  sync.Mutex
	all [][2]time.Time
}

// watchFreezes notes when nothing ran on this machine, not even a thread of the
// real-time class, until the test ends.
func (l *lab) watchFreezes() *freezes {
	f, quit := &freezes{}, make(chan struct{})
	l.goUntilEnd(func() { close(quit) }, func() {
		runtime.LockOSThread()
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 50}
		if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
			return // then none is excused
		}
		for last := time.Now(); ; {
			select {
			case <-quit:
				return
			default:
			}
			nap := unix.NsecToTimespec(int64(freezeLook))
			_ = unix.Nanosleep(&nap, nil) // cut short, it is only early
			now := time.Now()
			if now.Sub(last) > freezeLong {
				f.mu.Lock()
				f.all = append(f.all, [2]time.Time{last.Round(0), now.Round(0)})
				f.mu.Unlock()
			}
			last = now
		}
	})
	return f
}

// excuse reports whether the machine was frozen at t, or just before.
func (f *freezes) excuse(t time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, z := range f.all {
		if !t.Before(z[0]) && !t.After(z[1].Add(freezeAfter)) {
			return true
		}
	}
	return false
}
