package syncd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// Handshakes under way, which the kernel never tells, are told when a share
// moves: once, and not where more is known already.
func TestHandshakesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 51)
		half := tcp(0, tcpSynRecv, time.Minute)
		half.Flags |= conntable.FlagInactive
		known := tcp(1, established, 15*time.Minute)
		a.Captured(&known)
		a.kernel.serve(known)
		a.kernel.serve(half)
		late := known
		late.State = tcpSynRecv // the table was read before the mirror heard
		a.kernel.serve(late)
		reused := tcp(2, tcpClose, time.Hour) // ends, and its client uses the port again
		reused.Flags |= conntable.FlagInactive
		a.Captured(&reused)
		again := reused
		again.State, again.Dest = tcpSynRecv, realB
		a.kernel.serve(again)
		time.Sleep(2 * auditEvery)
		if _, there := b.kernel.get(half.Key); there {
			t.Fatal("the peer's kernel has a connection that is half open; nobody should have told it")
		}
		reset := tcp(3, established, time.Hour) // its server's reset was not told, and its port is used again
		a.Captured(&reset)
		anew := reset
		anew.State, anew.Dest = tcpSynRecv, realA
		a.kernel.serve(anew)
		for i, want := range []int{3, 0} {
			if told, err := a.TellHandshakes(t.Context()); err != nil || told != want {
				t.Errorf("call %d told %d, %v; want %d", i, told, err, want)
			}
			time.Sleep(time.Second)
		}
		if n := a.Status().Sent.Handshakes; n != 3 {
			t.Errorf("the status counts %d handshakes told, want 3", n)
		}
		if c, there := b.kernel.get(half.Key); !there || c.State != tcpSynRecv || c.Dest != half.Dest || c.Flags&conntable.FlagInactive == 0 {
			t.Errorf("the peer's kernel has %+v, %v; want the connection that is half open", c, there)
		}
		for _, want := range []conntable.Connection{again, anew} {
			if e, _ := b.kernel.entry(want.Key); e.State != tcpSynRecv || e.Dest != want.Dest {
				t.Errorf("the peer's kernel has %+v; want the new connection from a port that was used before, to %v", e.Connection, want.Dest)
			}
		}
		if c, _ := b.kernel.get(known.Key); c.State != established {
			t.Errorf("the peer's kernel has %+v; want it established", c)
		}
	})
}

// A table that is too long is not read to its end, and of a flood of SYNs some are
// told.
func TestHandshakesOfALongTable(t *testing.T) {
	for name, tc := range map[string]struct {
		state   uint16
		many    int
		told    int
		because error
	}{
		"long":    {established, 2 * handshakesAmong, 0, errLongTable},
		"a flood": {tcpSynRecv, 2 * handshakesAtOnce, handshakesAtOnce, errManyHandshakes},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := start(t, peertest.New(52), 1, newFakeKernel())
				synctest.Wait() // what is there at start is found
				for i := range tc.many {
					a.kernel.serve(tcp(i, tc.state, time.Minute))
				}
				told, err := a.TellHandshakes(t.Context())
				if !errors.Is(err, tc.because) || told < tc.told || told > tc.told+100 {
					t.Errorf("told %d of %d, %v; want %d and %v", told, tc.many, err, tc.told, tc.because)
				}
			})
		})
	}
}

// The barrier waits for the kernel's heartbeats, not for a time, when these
// come late; but not for those of a kernel that is not heard.
func TestBarrierWaitsForHeartbeats(t *testing.T) {
	for name, tc := range map[string]struct {
		stats func(since time.Duration) KernelStats
		after time.Duration
	}{
		"quiet": {func(d time.Duration) KernelStats {
			return KernelStats{Source: SourceDaemon, Beats: uint64(d / (50 * time.Millisecond))}
		}, captureLag},
		"late": {func(d time.Duration) KernelStats {
			return KernelStats{Source: SourceDaemon, Beats: uint64(d / time.Second)}
		}, 2 * time.Second},
		"not heard": {func(time.Duration) KernelStats {
			return KernelStats{Source: SourceDaemon, Degraded: "capture: no heartbeat"}
		}, captureLag},
		"the module": {func(time.Duration) KernelStats {
			return KernelStats{Source: SourceModule}
		}, captureLag},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _ := pair(t, 53)
				began := time.Now()
				a.kernel.stats = func() KernelStats { return tc.stats(time.Since(began)) }
				if err := a.capturedAll(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took < tc.after || took > tc.after+captureLag {
					t.Errorf("waited %v, want %v", took, tc.after)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if err := a.capturedAll(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("after the caller's end: %v", err)
				}
			})
		})
	}
}

// Who is told that all is in the kernel is told so when the kernel has done it,
// not when it was handed over, for as long as he waits.
func TestInTheKernelMeansDone(t *testing.T) {
	const lag = 700 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(54)
		a := start(t, network, 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		k := newFakeKernel()
		k.lag, k.stuck = 10*time.Second, 1
		b := start(t, network, 2, k)
		time.Sleep(20 * time.Second) // it was stuck once
		if b.Synced() {
			t.Error("synced before the kernel had taken what it was told")
		}
		time.Sleep(4 * time.Second)
		if !b.Synced() {
			t.Error("not synced although the kernel has taken all")
		}
		k.lagBy(lag)
		for what, wait := range map[string]func(context.Context) error{
			"resync":  func(ctx context.Context) error { _, err := b.Resync(ctx); return err },
			"barrier": func(ctx context.Context) error { return b.CatchUp(ctx, a.node) },
		} {
			began := time.Now()
			if err := wait(t.Context()); err != nil || time.Since(began) < lag {
				t.Errorf("%s: %v after %v; want nil after %v or more", what, err, time.Since(began), lag)
			}
			k.lagBy(time.Hour)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if err := wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s with a stuck kernel: %v", what, err)
			}
			cancel()
			k.lagBy(lag)
		}
	})
}
