package syncd

import (
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// Connections that this director told of before a power cut, and whose real
// server it does not know yet, are not gone.
func TestHeldOfAnEarlierLifeIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(30)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		c := tcp(3, established, 900*time.Second)
		b.capture(c)
		time.Sleep(time.Second)
		b.stop()
		target := Target{Virtual: vip, Protocol: 6, Dest: c.Dest}
		k := newFakeKernel()
		k.forget(target)
		b = start(t, network, 2, k)
		time.Sleep((missedOften + 3) * auditEvery)
		if st := b.Status(); !b.Synced() || st.Connections.Mirror != 1 || st.Audit.Held != 1 {
			t.Fatalf("%+v %+v, so this test shows nothing", st.Connections, st.Audit)
		}
		if found, err := b.reconcile(fakeTable{}, false); err != nil || found.Gone != 0 {
			t.Errorf("compared with the module's table: %+v, %v", found, err)
		}
		time.Sleep(time.Second)
		if _, ok := a.kernel.entry(c.Key); !ok || b.Status().Audit.Gone != 0 {
			t.Errorf("deleted at the peer: %v, %+v", !ok, b.Status().Audit)
		}
		k.learn(target)
		time.Sleep(servicesEvery + time.Second)
		if _, ok := k.entry(c.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
	})
}

// A connection whose real server is unknown waits for it.
func TestHeldUntilTheRealServerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 26)
		target := Target{Virtual: vip, Protocol: 6, Dest: realB}
		b.kernel.forget(target)
		time.Sleep(servicesEvery + time.Second)
		toA, toB := tcp(2, established, 900*time.Second), tcp(3, established, 900*time.Second)
		a.capture(toA)
		a.capture(toB)
		time.Sleep(12 * time.Second)
		if _, ok := b.kernel.entry(toA.Key); !ok {
			t.Error("the connection to the known real server was not injected")
		}
		if _, ok := b.kernel.entry(toB.Key); ok {
			t.Error("a connection to an unknown real server was injected")
		}
		if st := b.Status(); st.Kernel.HeldBack != 1 || st.Audit.Held != 1 || st.Connections.Mirror != 2 {
			t.Errorf("%+v %+v", st.Kernel, st.Audit)
		}
		before := b.kernel.injections()
		b.kernel.learn(target)
		time.Sleep(servicesEvery + 100*time.Millisecond)
		if _, ok := b.kernel.entry(toB.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
		if got := b.kernel.injections() - before; got != 1 || b.Status().Kernel.Reinjected != 1 {
			t.Errorf("told again %d times, counted %d; want 1", got, b.Status().Kernel.Reinjected)
		}
	})
}

// So is what a peer found in its kernel, and never told.
func TestHeldOfAPeersFoundUntilTheRealServerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(34)
		c := tcp(3, established, 900*time.Second)
		c.Dest = realB
		ka, kb := newFakeKernel(), newFakeKernel()
		ka.found = []conntable.Connection{c}
		target := Target{Virtual: vip, Protocol: 6, Dest: realB}
		kb.forget(target)
		start(t, network, 1, ka)
		start(t, network, 2, kb)
		time.Sleep(4 * time.Second)
		if _, ok := kb.entry(c.Key); ok {
			t.Fatal("a connection to an unknown real server was injected")
		}
		kb.learn(target)
		time.Sleep(servicesEvery + 100*time.Millisecond)
		if _, ok := kb.entry(c.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
	})
}
