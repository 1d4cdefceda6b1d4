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
		for i, want := range []int{2, 0} {
			if told, err := a.TellHandshakes(t.Context()); err != nil || told != want {
				t.Errorf("call %d told %d, %v; want %d", i, told, err, want)
			}
			time.Sleep(time.Second)
		}
		if c, there := b.kernel.get(half.Key); !there || c.State != tcpSynRecv || c.Dest != half.Dest || c.Flags&conntable.FlagInactive == 0 {
			t.Errorf("the peer's kernel has %+v, %v; want the connection that is half open", c, there)
		}
		if c, _ := b.kernel.get(again.Key); c.State != tcpSynRecv || c.Dest != realB || c.Flags&conntable.FlagInactive != 0 {
			t.Errorf("the peer's kernel has %+v; want the new connection from a port that was used before, as active", c)
		}
		if c, _ := b.kernel.get(known.Key); c.State != established {
			t.Errorf("the peer's kernel has %+v; want it established", c)
		}
	})
}

// In a table that is too long to be read in time nobody looks for handshakes.
func TestHandshakesOfALongTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, peertest.New(52), 1, newFakeKernel())
		for i := range handshakesAmong + 1 {
			c := tcp(i, established, time.Minute)
			a.Captured(&c)
		}
		if told, err := a.TellHandshakes(t.Context()); err == nil || told != 0 {
			t.Errorf("told %d handshakes of a table of %d; want an error", told, a.table.Len())
		}
	})
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
