package syncd

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// What the kernel lost is told again as soon as it says that it lost something.
func TestLostByTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 31)
		const n = 20
		b.kernel.mu.Lock()
		b.kernel.lose = n
		b.kernel.mu.Unlock()
		for i := range n {
			a.capture(tcp(2*i, established, 900*time.Second))
		}
		time.Sleep(time.Second)
		if b.kernel.lostSome.Add(1); b.kernel.injections() != n {
			t.Fatalf("%d injections, want %d", b.kernel.injections(), n)
		}
		time.Sleep(lostEvery + 100*time.Millisecond)
		for i := range n {
			if _, ok := b.kernel.entry(tcp(2*i, established, 0).Key); !ok {
				t.Errorf("connection %d is not in the peer's kernel", i)
			}
		}
		if got := b.Status(); got.Kernel.Reinjected != n || got.Audit.Reinjected != 0 {
			t.Errorf("%d told again, %d of them by the audit; want %d and none", got.Kernel.Reinjected, got.Audit.Reinjected, n)
		}
		time.Sleep(10 * lostEvery)
		if got := b.kernel.injections(); got != 2*n {
			t.Errorf("%d injections, want %d", got, 2*n)
		}
	})
}

// What is told again in time does not come over what came a moment ago.
func TestToldInTimeIsNotStale(t *testing.T) {
	for _, closes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler)})
			c := tcp(1, established, 900*time.Second)
			e.Captured(&c)
			time.Sleep(500 * time.Second)
			e.table.Extend(c.Key, 900*time.Second)
			var seen, now conntable.Record
			e.table.Lookup(c.Key, &seen)
			want := c
			if closes {
				want.State, want.Timeout = finWait, 120*time.Second
				e.Captured(&want)
			}
			e.tellOnce(&seen)
			e.table.Lookup(c.Key, &now)
			if told := e.retold.Load() == 1; now.State != want.State || told == closes {
				t.Errorf("it closes: %v; told again: %v, the mirror has state %d", closes, told, now.State)
			}
		})
	}
}

// So are deletions told again.
func TestDeletionsAreToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 32)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		time.Sleep(time.Second)
		b.kernel.with(troubles["not taken"].begin)
		a.kernel.lost(c.Key)
		a.queued(a.table.Delete(c.Key, a.clock.Next(), a.newsFor()))
		time.Sleep(500 * time.Millisecond)
		if _, there := b.kernel.entry(c.Key); !there {
			t.Fatal("deleted by a kernel that takes nothing")
		}
		b.kernel.with(troubles["not taken"].end)
		time.Sleep(lostEvery + 100*time.Millisecond)
		if _, there := b.kernel.entry(c.Key); there {
			t.Error("not deleted when the kernel took it")
		}
	})
}
