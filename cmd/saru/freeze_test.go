package main

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A kernel's timers, and with them the lease, go by its jiffies. Where those
// stand still while packets are taken, the lease is longer by as much: the one
// thing that it cannot bound (docs: drain first). It happens to a machine that
// is frozen as a whole, and to an emulated one whenever the real one is busy:
// the processor that counts the jiffies has no turn, and another takes packets.
// So how long they stood still is measured, and added to the bound.

const (
	stillLook = 5 * time.Millisecond
	// stillLeast is what counts: two jiffies at 250 Hz.
	stillLeast = 8 * time.Millisecond
	// stillAfter is for how long after it a packet may still be judged by the
	// time before.
	stillAfter = 2 * stillLook
)

// A still is a time in which the clock of one processor, or of all, did not go
// on.
type still struct{ from, until time.Time }

// standstills are what was seen of them, since the lab's begin.
type standstills struct {
	mu      sync.Mutex
	jiffies []still   // ended by whoever saw it, on any processor
	asleep  [][]still // of each processor: no thread had a turn there
}

// watchClocks notes when the kernel's jiffies, or all processors, stand still,
// until the test ends.
func (l *lab) watchClocks() *standstills {
	cpus := make([]int, 0, runtime.NumCPU())
	var allowed unix.CPUSet
	l.must(unix.SchedGetaffinity(0, &allowed))
	for cpu := 0; len(cpus) < allowed.Count(); cpu++ {
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	s, quit := &standstills{asleep: make([][]still, len(cpus))}, make(chan struct{})
	l.goUntilEnd(func() { close(quit) }, func() {
		var all sync.WaitGroup
		for i, cpu := range cpus {
			all.Go(func() { s.watch(i, cpu, quit) })
		}
		all.Wait()
	})
	return s
}

// watch looks at the clocks on one processor until quit is closed.
func (s *standstills) watch(i, cpu int, quit chan struct{}) {
	runtime.LockOSThread() // never unlocked: the thread ends with its affinity
	var own unix.CPUSet
	own.Set(cpu)
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 50}
	if unix.SchedSetaffinity(0, &own) != nil || unix.SchedSetAttr(0, &attr, 0) != nil {
		return // then nothing is added
	}
	for last := time.Now().Round(0); ; {
		select {
		case <-quit:
			return
		default:
		}
		nap := unix.NsecToTimespec(int64(stillLook))
		_ = unix.Nanosleep(&nap, nil) // cut short, it is only early
		now, counted := time.Now().Round(0), unix.Timespec{}
		// The coarse clock advances with the jiffies (time(7)).
		if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &counted) != nil {
			return
		}
		s.saw(i, last, now, time.Unix(counted.Unix()))
		last = now
	}
}

// saw notes what one look at the clocks shows: that the one before was at last,
// and that the jiffies have come to counted by now.
func (s *standstills) saw(cpu int, last, now, counted time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(counted) > stillLeast {
		s.jiffies = append(s.jiffies, still{counted, now})
	}
	if now.Sub(last) > stillLook+stillLeast {
		s.asleep[cpu] = append(s.asleep[cpu], still{last, now})
	}
}

// at returns for how long the clock that a lease goes by may have stood still
// when a packet was taken at t.
func (s *standstills) at(t time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	frozen := time.Duration(-1) // of all processors at once
	for _, cpu := range s.asleep {
		if d := longest(cpu, t); frozen < 0 || d < frozen {
			frozen = d
		}
	}
	return max(longest(s.jiffies, t), frozen, 0)
}

// longest returns the length of the longest of all that t falls into, or just
// behind.
func longest(all []still, t time.Time) (d time.Duration) {
	for _, s := range all {
		if !t.Before(s.from) && !t.After(s.until.Add(stillAfter)) {
			d = max(d, s.until.Sub(s.from)+stillAfter)
		}
	}
	return d
}

// Only what stood still is added, only when it did, and of processors only if
// all did.
func TestStandstills(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, int64(ms)*1e6) }
	s := &standstills{asleep: make([][]still, 2)}
	s.saw(0, at(0), at(5), at(3))
	s.saw(0, at(5), at(110), at(30))    // the jiffies stood at 30
	s.saw(0, at(200), at(400), at(398)) // this processor had no turn, the jiffies went on
	s.saw(1, at(300), at(450), at(449)) // nor this one, later
	for ms, want := range map[int]time.Duration{4: 0, 29: 0, 70: 90, 119: 90, 121: 0, 250: 0, 350: 160, 440: 0, 500: 0} {
		if got := s.at(at(ms)); got != want*time.Millisecond {
			t.Errorf("at %d ms: %v, want %v ms", ms, got, want)
		}
	}
}
