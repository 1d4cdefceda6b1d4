package syncd

import (
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// datagramPair is pair, of directors that serve datagrams with both real
// servers; and a flow of them to the first.
func datagramPair(t *testing.T, seed uint64) (a, b *node, flow conntable.Connection) {
	t.Helper()
	a, b = pair(t, seed)
	for _, n := range []*node{a, b} {
		n.kernel.learn(datagramTarget(realA), datagramTarget(realB))
	}
	time.Sleep(servicesEvery + time.Second)
	flow = tcp(1, 0, 300*time.Second)
	flow.Protocol, flow.Dest, flow.Flags = protoUDP, realA, flow.Flags|conntable.FlagInactive
	return a, b, flow
}

func datagramTarget(dest netip.AddrPort) Target {
	return Target{Virtual: vip, Protocol: protoUDP, Dest: dest}
}

// A kernel keeps the real server that it has against what it is told of an
// inactive entry, and each of UDP is inactive.
func TestAuditTellsOfADatagramFlowsNewServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 26)
		a.capture(c)
		time.Sleep(5 * time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realA {
			t.Fatalf("the peer's kernel has %+v, %v", e, ok)
		}
		c.Dest = realB
		a.kernel.serve(c) // without a word
		time.Sleep(10 * time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB {
			t.Errorf("the peer's kernel has %+v, %v; want it to send to %v", e, ok, realB)
		}
	})
}

// What came meanwhile is not taken off the kernel's queue with what tells
// nothing new.
func TestNewerNewsStaysQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler)})
		c := tcp(1, established, 900*time.Second)
		e.take(&Entry{Connection: c, Remaining: 900 * time.Second}, 0)
		clock := conntable.NewClock(7)
		same := conntable.Record{Connection: c, Version: clock.Next(), Remaining: 900 * time.Second}
		res := e.table.Apply(&same, conntable.ToKernel)
		newer := same
		newer.Version, newer.State = clock.Next(), finWait
		e.table.Apply(&newer, conntable.ToKernel)
		if !e.nothingNew(&same, &res) || e.toKernel.size() != 1 {
			t.Errorf("%d wait for the kernel, want the newer one", e.toKernel.size())
		}
	})
}

// So the peers' kernels are told of an active entry first, when the owner's
// tells of another real server.
func TestDatagramFlowMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 27)
		for i, dest := range []netip.AddrPort{realA, realB, realA} {
			c.Dest = dest
			a.capture(c)
			time.Sleep(time.Second)
			if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != dest || e.Flags&conntable.FlagInactive == 0 {
				t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, dest)
			}
			if want := max(1, 2*i+1); b.kernel.injections() != want {
				t.Errorf("%d injections, want %d", b.kernel.injections(), want)
			}
		}
	})
}

// Also if the kernel does not take it at once, or loses it.
func TestDatagramFlowMovesWhenTheKernelTakesIt(t *testing.T) {
	for what, x := range troubles {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, c := datagramPair(t, 30)
				c.Dest = realA
				a.capture(c)
				time.Sleep(time.Second)
				b.kernel.with(x.begin)
				c.Dest = realB
				a.capture(c)
				time.Sleep(500 * time.Millisecond)
				b.kernel.with(x.end)
				time.Sleep(lostEvery + injectAgain)
				if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB || e.Flags&conntable.FlagInactive == 0 {
					t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, realB)
				}
			})
		})
	}
}

// Also if the peer learns of the new real server later.
func TestDatagramFlowMovesOnceItsServerIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 29)
		b.kernel.forget(datagramTarget(realB))
		time.Sleep(servicesEvery + time.Second)
		for _, c.Dest = range []netip.AddrPort{realA, realB} {
			a.capture(c)
			time.Sleep(time.Second)
		}
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realA {
			t.Errorf("the peer's kernel has %+v, %v; want what it had", e, ok)
		}
		b.kernel.learn(datagramTarget(realB))
		time.Sleep(servicesEvery + 500*time.Millisecond) // before two passes of the audit
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB || e.Flags&conntable.FlagInactive == 0 {
			t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, realB)
		}
	})
}

// However many move, what is remembered of them is bounded, and forgotten when
// it was told.
func TestMovedIsBounded(t *testing.T) {
	var m moved
	for i := range maxMoved + 2 {
		m.note(tcp(i, 0, 0).Key)
	}
	last := tcp(maxMoved+1, 0, 0).Key
	if len(m.keys) > maxMoved || !m.take(&last) || m.take(&last) || len(m.keys) != 1 {
		t.Errorf("%d are remembered", len(m.keys))
	}
}
