package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// pair runs two sessions on one network until the test ends.
func pair(t *testing.T) (network *peertest.Network, a, b *Session, got *[]conntable.Record) {
	t.Helper()
	return pairOf(t, 0, 0)
}

// pairOf is pair, with datagrams of so many bytes.
func pairOf(t *testing.T, ofA, ofB int) (network *peertest.Network, a, b *Session, got *[]conntable.Record) {
	t.Helper()
	kr := keys(t, keyA)
	network = peertest.New(1)
	a, _ = sessionOf(t, kr, "d1", network.Node(1), ofA)
	b, got = sessionOf(t, kr, "d2", network.Node(2), ofB)
	runAll(t, a, b)
	time.Sleep(2 * DefaultStartPeriod)
	return network, a, b, got
}

// runAll runs sessions until the test ends.
func runAll(t *testing.T, sessions ...*Session) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, len(sessions))
	for _, s := range sessions {
		go func() { ended <- s.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range sessions {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// What a peer had sent when CatchUp was called is delivered when it returns,
// however much was lost; and it does not wait for a heartbeat's time to come.
func TestCatchUp(t *testing.T) {
	for _, loss := range []float64{0, 0.5} {
		synctest.Test(t, func(t *testing.T) {
			network, a, b, got := pair(t)
			network.SetLoss(loss)
			const n = 200
			for range n {
				a.Send([]conntable.Record{now(a)})
			}
			start := time.Now()
			if err := b.CatchUp(t.Context(), "d1"); err != nil {
				t.Fatal(err)
			}
			if len(*got) < n {
				t.Errorf("loss %v: caught up with %d of %d records", loss, len(*got), n)
			}
			if d := time.Since(start); loss == 0 && d > 2*heartbeatSoon {
				t.Errorf("waited %v without a loss", d)
			}
		})
	}
}

// What was sent when Delivered was called is delivered at the peer when it
// returns, however much was lost.
func TestDelivered(t *testing.T) {
	for _, loss := range []float64{0, 0.5} {
		synctest.Test(t, func(t *testing.T) {
			network, a, _, got := pair(t)
			network.SetLoss(loss)
			const n = 200
			for range n {
				a.Send([]conntable.Record{now(a)})
			}
			start := time.Now()
			if err := a.Delivered(t.Context(), "d2"); err != nil {
				t.Fatal(err)
			}
			if len(*got) < n {
				t.Errorf("loss %v: %d of %d records are delivered", loss, len(*got), n)
			}
			if d := time.Since(start); loss == 0 && d > 2*heartbeatSoon {
				t.Errorf("waited %v without a loss", d)
			}
			if err := a.Delivered(t.Context(), "d3"); !errors.Is(err, ErrUnknownPeer) {
				t.Errorf("an unknown peer: %v", err)
			}
		})
	}
}

func TestCatchUpFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, _, b, _ := pair(t)
		if err := b.CatchUp(t.Context(), "d3"); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("an unknown peer: %v", err)
		}
		network.SetLoss(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.CatchUp(ctx, "d1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a silent peer: %v", err)
		}
		if len(b.catchUps) != 0 {
			t.Errorf("%d waiters are left", len(b.catchUps))
		}
	})
}
