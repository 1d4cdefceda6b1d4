package peer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

// A node that has yet to pull what a peer sent before gives no receipt for it:
// who waits for one would take the connections for safe.
func TestNoReceiptBeforeThePull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		kr := keys(t, keyA)
		network.SetStreamDelay(time.Second) // so the pull takes some seconds
		a, _ := session(t, kr, "d1", network.Node(1))
		b, _ := session(t, kr, "d2", network.Node(2))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for _, s := range []*Session{a, b} {
			go func() { ended <- s.Run(ctx) }()
		}
		defer func() {
			cancel()
			for range 2 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		}()
		a.Send([]conntable.Record{now(a)})
		time.Sleep(400 * time.Millisecond)
		state := func() string { return b.Peers()[0].State }
		asked := func() bool {
			select {
			case <-b.Asked():
				return true
			default:
				return false
			}
		}
		if len(b.Peers()) != 1 || state() != "pulling" {
			t.Fatalf("peers: %+v, so this test shows nothing", b.Peers())
		}
		a.Ask()
		time.Sleep(100 * time.Millisecond)
		if asked() || state() != "pulling" {
			t.Errorf("a receipt is given while the peer's table is pulled, in state %s", state())
		}
		time.Sleep(20 * time.Second)
		if !asked() || state() == "pulling" {
			t.Errorf("no receipt is given when the peer's table was pulled, in state %s", state())
		}
	})
}

// Nor for what was missed so often that it is left to a pull.
func TestNoReceiptForWhatIsLeftToAPull(t *testing.T) {
	s := &Session{asks: make(chan Receipt, 1)}
	boot := seal.Boot{1}
	p := &peerState{boot: boot, receipt: Receipt{boot: boot, sequence: 2*maxSpans + 2}}
	p.gaps.begin(0)
	for seq := uint64(2); seq <= 2*maxSpans+2; seq += 2 {
		_, lost := p.gaps.heard(seq)
		p.noteGap(lost, time.Now())
	}
	if !p.pullWanted {
		t.Fatal("no pull is wanted, so this test shows nothing")
	}
	s.receiptLocked(p)
	if len(s.asks) > 0 {
		t.Error("a receipt is given for datagrams that never came")
	}
	p.pullWanted = false
	s.receiptLocked(p)
	if len(s.asks) != 1 {
		t.Error("and none when they were pulled")
	}
}
