package director

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A standIn does the engine's turns while the engine's own thread is held up.
//
// A thread of the real-time class goes before all others, but it is woken on
// the processor where it fell asleep, and there waits for whatever the kernel
// does on somebody's behalf: a foreign nftables transaction of 200,000 elements
// takes half a second, which on kernels without preemption nothing interrupts.
// That is longer than a lease. So a thread on each of two processors sees to it
// that the ticks are kept. It is a task.
type standIn struct {
	engine *Engine
	cpu    int
	up     chan struct{}
}

// standIns returns one for each of two processors, none where there is one, or
// where they are not needed: each costs a percent or two of a processor.
func standIns(e *Engine) (all []*standIn) {
	var allowed unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil || allowed.Count() < 2 || preemptible() {
		return nil
	}
	for cpu := 0; len(all) < 2; cpu++ {
		if allowed.IsSet(cpu) {
			all = append(all, &standIn{e, cpu, make(chan struct{})})
		}
	}
	return all
}

// preemptible reports whether this kernel is known to interrupt its own work
// for a real-time thread.
func preemptible() bool {
	version, _ := os.ReadFile("/proc/version")
	if strings.Contains(string(version), " PREEMPT_RT ") || strings.Contains(string(version), " PREEMPT ") {
		return true
	}
	// With PREEMPT_DYNAMIC it is chosen at boot (kernel/sched/debug.c); the one
	// in use is in parentheses.
	mode, _ := os.ReadFile("/sys/kernel/debug/sched/preempt")
	return strings.Contains(string(mode), "(full)") || strings.Contains(string(mode), "(lazy)")
}

// Ready is closed when ticks are watched.
func (s *standIn) Ready() <-chan struct{} { return s.up }

func (s *standIn) String() string { return fmt.Sprintf("stand-in on processor %d", s.cpu) }

// Run watches the ticks until ctx ends.
func (s *standIn) Run(ctx context.Context) error {
	runtime.LockOSThread() // never unlocked: the thread ends with its affinity
	var own unix.CPUSet
	own.Set(s.cpu)
	if err := unix.SchedSetaffinity(0, &own); err != nil {
		s.engine.log.Warn("no stand-in for the engine", "processor", s.cpu, "err", err)
		close(s.up)
		<-ctx.Done()
		return nil
	}
	close(s.up)
	e := s.engine
	grace := e.interval / 4
	for ctx.Err() == nil {
		overdue := e.now() - time.Duration(e.due.Load()) - grace
		if e.due.Load() == 0 || overdue < 0 {
			nap(min(e.interval, max(-overdue, grace)))
			continue
		}
		if err := s.serve(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serve does turns until the engine does one itself.
func (s *standIn) serve(ctx context.Context) error {
	e := s.engine
	var events [1]unix.EpollEvent
	for since := e.done.Load(); e.done.Load() == since && ctx.Err() == nil; {
		// Another stand-in, or whoever asks the engine something, is soon done.
		if e.turns.TryLock() {
			e.turn()
			e.standIns++
			e.turns.Unlock()
		}
		if _, err := unix.EpollWait(e.waiter.fd, events[:], int(e.interval/4/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%v: epoll: %w", s, err)
		}
	}
	return nil
}

// nap sleeps in the kernel on this thread: Go's timers would have another
// thread wake it.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	// Cut short by a signal, it is only early.
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil)
}
