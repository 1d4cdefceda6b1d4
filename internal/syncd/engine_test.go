package syncd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer"
	"saru/syncproto/peer/peertest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envDirector); path != "" {
		os.Exit(child(path, runDirector))
	}
	if path := os.Getenv(envProcess); path != "" {
		os.Exit(child(path, runProcess))
	}
	goleak.VerifyTestMain(m)
}

var (
	vip   = netip.MustParseAddrPort("10.9.0.100:80")
	realA = netip.MustParseAddrPort("192.168.6.10:80")
	realB = netip.MustParseAddrPort("192.168.6.11:80")
)

func tcp(i int, state uint16, timeout time.Duration) conntable.Connection {
	c := conntable.Connection{
		Key: conntable.Key{
			Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff)),
			Virtual: vip, Protocol: 6,
		},
		Dest: realA, State: state, Flags: conntable.FlagFwdGate, Timeout: timeout,
	}
	if i%2 == 1 {
		c.Dest = realB
	}
	return c
}

const (
	established = 1
	finWait     = 4
	closeWait   = 7
)

// A node is one engine of a test.
type node struct {
	*Engine
	kernel *fakeKernel
	net    *peertest.Node
	stop   func()
}

var testKeys = func() *seal.Keyring {
	kr, err := seal.ParseKeyring([]byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
	if err != nil {
		panic(err)
	}
	return kr
}()

func start(t *testing.T, network *peertest.Network, i int, k *fakeKernel) *node {
	t.Helper()
	return startWith(t, network, i, k, testKeys)
}

func startWith(t *testing.T, network *peertest.Network, i int, k *fakeKernel, keys *seal.Keyring) *node {
	t.Helper()
	nd := network.Node(i)
	n := startOn(t, nd, i, k, keys)
	n.net = nd
	return n
}

// startOn starts an engine over any transport, with any kernel that has a
// fakeKernel in it.
func startOn(t *testing.T, tr peer.Transport, i int, k Kernel, keys *seal.Keyring) *node {
	t.Helper()
	n := &node{}
	switch k := k.(type) {
	case *fakeKernel:
		n.kernel = k
	case *orderKernel:
		n.kernel = k.fakeKernel
	}
	n.Engine = New(Config{Node: fmt.Sprintf("d%d", i), Keys: keys, Transport: tr, Log: slog.New(slog.DiscardHandler)})
	n.SetKernel(k)
	n.audit = newAudit(n.Engine, func() time.Duration { return 0 }) // no real time in virtual time
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", n.node, err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// capture is a client's packet, of which the kernel tells.
func (n *node) capture(c conntable.Connection) {
	n.kernel.serve(c)
	n.Captured(&c)
}

func TestOneConnectionReachesAllKernelsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		a, b, c := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel()), start(t, network, 3, newFakeKernel())
		time.Sleep(3 * time.Second)
		for _, n := range []*node{a, b, c} {
			if !n.Synced() {
				t.Fatalf("%s is not synced after 3 s", n.node)
			}
		}
		conn := tcp(1, established, 900*time.Second)
		conn.Flags |= conntable.FlagSync // it once came to a by sync: a took it over
		a.capture(conn)
		time.Sleep(time.Millisecond)
		for _, n := range []*node{b, c} {
			got, ok := n.kernel.get(conn.Key)
			if !ok {
				t.Fatalf("%s: the kernel was not told within 1 ms", n.node)
			}
			if got.Dest != conn.Dest || got.State != established || got.Timeout != 900*time.Second || got.Flags != conntable.FlagFwdGate {
				t.Errorf("%s: the kernel was told %+v", n.node, got)
			}
		}
		if a.kernel.len() != 0 {
			t.Error("a's kernel was told its own news")
		}
	})
}

func TestLossIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(2)
		nodes := []*node{start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel()), start(t, network, 3, newFakeKernel())}
		time.Sleep(3 * time.Second)
		network.SetLoss(0.3)
		const each = 2000
		for i := range each {
			for j, n := range nodes {
				n.capture(tcp(j*each+i, established, 900*time.Second))
			}
			if i%10 == 0 {
				time.Sleep(3 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		if network.Lost() < 100 {
			t.Fatalf("only %d datagrams were lost", network.Lost())
		}
		for _, n := range nodes {
			if got := n.table.Len(); got != 3*each {
				t.Errorf("%s mirrors %d connections, want %d", n.node, got, 3*each)
			}
			if got := n.kernel.len(); got != 2*each {
				t.Errorf("%s: the kernel was told %d connections, want %d", n.node, got, 2*each)
			}
			for _, p := range n.Status().Peers {
				if p.Lost == 0 || p.Repaired == 0 || p.Missing != 0 || p.LagMS != 0 {
					t.Errorf("%s of %s: %+v", n.node, p.Name, p)
				}
			}
		}
		network.SetLoss(0)
		time.Sleep(20 * time.Second)
		for _, n := range nodes {
			for _, p := range n.Status().Peers {
				if p.DigestEqual == nil || !*p.DigestEqual {
					t.Errorf("%s: digest of %s not equal", n.node, p.Name)
				}
			}
		}
	})
}

func TestNewestStateWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(3)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		conn := tcp(1, established, 900*time.Second)
		a.capture(conn)
		time.Sleep(time.Second)
		// b takes the connection over, unheard by a, and a tells an old state
		// in the end: b's kernel must never hear of it.
		network.SetCut(a.net, b.net, true)
		old := conn
		old.State = 7 // CLOSE_WAIT
		a.capture(old)
		time.Sleep(time.Second)
		conn.State, conn.Timeout = finWait, 120*time.Second
		b.capture(conn)
		before := b.kernel.injections()
		time.Sleep(100 * time.Millisecond)
		network.SetCut(a.net, b.net, false)
		time.Sleep(5 * time.Second)
		if got := b.kernel.injections(); got != before {
			t.Errorf("b's kernel was told %d times over its own news", got-before)
		}
		if got, _ := a.kernel.get(conn.Key); got.State != finWait {
			t.Errorf("a's kernel has state %d, want b's newer %d", got.State, finWait)
		}
		var r conntable.Record
		if !a.table.Lookup(conn.Key, &r) || r.State != finWait || r.Version.Node != b.self {
			t.Errorf("a's mirror has %+v", r)
		}
	})
}

// What waits for the kernel is looked at again when its turn comes.
func TestLocalNewsOutrunWhatWaitsForTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(13)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		b.kernel.mu.Lock()
		b.kernel.fail = errors.New("stuck")
		b.kernel.mu.Unlock()
		tried, waiting := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second)
		a.capture(tried)
		time.Sleep(20 * time.Millisecond)
		a.capture(waiting)
		time.Sleep(20 * time.Millisecond)
		tried.State, waiting.State = finWait, finWait
		b.capture(tried)
		b.capture(waiting)
		b.kernel.mu.Lock()
		b.kernel.fail = nil
		b.kernel.mu.Unlock()
		time.Sleep(3 * time.Second)
		if n := b.kernel.injections(); n != 0 {
			t.Errorf("the kernel was told %d times over newer local state", n)
		}
	})
}

func TestJoinerPullsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(4)
		a := start(t, network, 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		const many = 5000
		for i := range many {
			a.capture(tcp(i, established, 900*time.Second))
		}
		template := tcp(many, 1, 300*time.Second)
		template.Template, template.Flags = true, template.Flags|conntable.FlagTemplate
		template.Client = netip.AddrPortFrom(template.Client.Addr(), 0)
		a.capture(template)
		time.Sleep(100 * time.Second)
		b := start(t, network, 2, newFakeKernel())
		time.Sleep(time.Millisecond)
		if b.Synced() {
			t.Fatal("b is synced before it heard anybody")
		}
		time.Sleep(5 * time.Second)
		if !b.Synced() || b.table.Len() != many+1 || b.kernel.len() != many+1 {
			t.Fatalf("synced %v, mirror %d, kernel %d; want all %d", b.Synced(), b.table.Len(), b.kernel.len(), many+1)
		}
		got, _ := b.kernel.get(tcp(7, 0, 0).Key)
		if got.Timeout < 797*time.Second || got.Timeout > 801*time.Second {
			t.Errorf("a TCP connection was injected with %v, want what remains of 900 s after 100 s", got.Timeout)
		}
		if got, _ := b.kernel.get(template.Key); got.Timeout != 300*time.Second {
			t.Errorf("a template was injected with %v, want its whole timeout", got.Timeout)
		}
		var ra, rb conntable.Record
		a.table.Lookup(tcp(7, 0, 0).Key, &ra)
		b.table.Lookup(tcp(7, 0, 0).Key, &rb)
		if ra.Version != rb.Version || (ra.Remaining-rb.Remaining).Abs() > 10*time.Millisecond {
			t.Errorf("versions %+v and %+v, remaining %v and %v", ra.Version, rb.Version, ra.Remaining, rb.Remaining)
		}
	})
}

func TestSyncedOnlyWhenTheKernelTookIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(5)
		a := start(t, network, 1, newFakeKernel())
		a.capture(tcp(1, established, 900*time.Second))
		time.Sleep(3 * time.Second)
		k := newFakeKernel()
		k.fail = errors.New("stuck")
		b := start(t, network, 2, k)
		time.Sleep(2200 * time.Millisecond)
		if b.table.Len() != 1 || b.Synced() {
			t.Fatalf("mirror %d, synced %v; want 1, and not synced while the kernel takes nothing", b.table.Len(), b.Synced())
		}
		k.mu.Lock()
		k.fail = nil
		k.mu.Unlock()
		time.Sleep(2 * time.Second)
		if !b.Synced() || k.len() != 1 {
			t.Errorf("synced %v, kernel has %d", b.Synced(), k.len())
		}
	})
}

// Nor while the kernel was told, and lost it on the way.
func TestSyncedOnlyWhenTheKernelLostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(5)
		a := start(t, network, 1, newFakeKernel())
		const n = 20
		for i := range n {
			a.capture(tcp(i, established, 900*time.Second))
		}
		time.Sleep(3 * time.Second)
		k := newFakeKernel()
		k.lose, k.finds, k.lag = n, 1, 300*time.Millisecond
		b := start(t, network, 2, k)
		for !b.Synced() {
			time.Sleep(time.Millisecond)
		}
		if k.len() != n || k.injections() != 2*n {
			t.Errorf("synced with %d of %d in the kernel, after %d injections", k.len(), n, k.injections())
		}
	})
}

// What the injection itself finds lost is waited for as well.
func TestCaughtUpWhenTheKernelLostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(5)
		k := &orderKernel{fakeKernel: newFakeKernel(), gate: newTurnstile()}
		a, b := start(t, network, 1, newFakeKernel()), startOn(t, network.Node(2), 2, k, testKeys)
		time.Sleep(3 * time.Second)
		const n = 20
		k.gate.shut()
		k.with(func(k *fakeKernel) {
			k.lose = n
			k.onInject = func(*conntable.Connection) {
				if k.lose > 0 {
					k.lostSome.Add(1)
				}
			}
		})
		for i := range n {
			a.capture(tcp(i, established, 900*time.Second))
		}
		time.Sleep(500 * time.Millisecond)
		if got := b.Status().Kernel.Waiting; got != n {
			t.Errorf("%d are said to wait for the kernel, want all %d", got, n)
		}
		caughtUp := make(chan int, 1)
		go func() {
			if err := b.inKernel(t.Context()); err != nil {
				t.Error(err)
			}
			caughtUp <- k.len()
		}()
		synctest.Wait()
		k.gate.open() // for the injection that is lost
		k.gate.shut() // before it is told again
		synctest.Wait()
		k.gate.open()
		if got := <-caughtUp; got != n {
			t.Errorf("caught up with %d of %d in the kernel", got, n)
		}
	})
}

func TestRestartKeepsWhatTheKernelHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(6)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		kept, moved, alone := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second), tcp(4, established, 900*time.Second)
		a.capture(kept)
		a.capture(moved)
		same := tcp(6, established, 900*time.Second)
		b.capture(same)
		reused := tcp(8, established, 900*time.Second)
		reused.Dest = realA
		a.capture(reused)
		reused.Dest = realB // while a's syncd is away
		again := tcp(9, established, 900*time.Second)
		a.capture(again) // as is this one, after it was deleted
		a.queued(a.table.Delete(again.Key, a.clock.Next(), a.newsFor()))
		time.Sleep(time.Second)
		a.stop()
		// While a's syncd is away, its kernel goes on with kept, and b takes
		// moved over.
		moved.State, moved.Timeout = finWait, 120*time.Second
		b.capture(moved)
		k := newFakeKernel()
		now := kept
		now.State, now.Timeout = finWait, 120*time.Second
		k.found = []conntable.Connection{now, moved, alone, same}
		k.found[1].State, k.found[1].Timeout = established, 800*time.Second
		k.found = append(k.found, reused, again)
		a2 := start(t, network, 1, k)
		time.Sleep(5 * time.Second)
		if !a2.Synced() {
			t.Fatal("not synced")
		}
		if _, told := k.get(reused.Key); told {
			t.Error("the kernel was told of a connection whose ports another one has now")
		}
		if _, there := b.kernel.entry(again.Key); !there {
			t.Error("b's kernel lacks a connection that was made again after it was told deleted")
		}
		if got, _ := b.kernel.entry(reused.Key); got.Dest != realB {
			t.Errorf("b's kernel has %+v for ports that another connection has now, to %v", got, realB)
		}
		if _, told := k.get(kept.Key); told {
			t.Error("the kernel was told an older state of a connection that it knows better")
		}
		if got, _ := b.kernel.get(kept.Key); got.State != finWait {
			t.Errorf("b has state %d of a connection that a's kernel closed meanwhile, want %d", got.State, finWait)
		}
		if _, told := k.get(same.Key); told {
			t.Error("the kernel was told what it has")
		}
		if got, told := k.get(moved.Key); !told || got.State != finWait {
			t.Errorf("the kernel was told %+v, %v of a connection that a peer took over", got, told)
		}
		if _, told := b.kernel.get(alone.Key); !told {
			t.Error("b was not told what only a's kernel had")
		}
	})
}

func TestPowerCutComesBackEmptyAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(7)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		a.capture(tcp(1, established, 900*time.Second))
		b.capture(tcp(2, established, 900*time.Second))
		time.Sleep(time.Second)
		a.stop()
		time.Sleep(time.Second)
		a = start(t, network, 1, newFakeKernel())
		time.Sleep(4 * time.Second)
		// Also what its own earlier life told.
		if !a.Synced() || a.kernel.len() != 2 {
			t.Errorf("synced %v, the kernel was told %d of 2", a.Synced(), a.kernel.len())
		}
		if st := b.Status(); len(st.Peers) != 1 || st.Peers[0].Restarts != 1 || st.Peers[0].State != "up" {
			t.Errorf("b's peers: %+v", st.Peers)
		}
	})
}

func TestLongCutIsHealedByAPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(8)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		network.SetCut(a.net, b.net, true)
		const many = 6000 // datagrams: more than the ring keeps
		for i := range many {
			a.capture(tcp(i, established, 900*time.Second))
			time.Sleep(6 * time.Millisecond)
		}
		if st := b.Status(); st.Peers[0].State != "silent" {
			t.Errorf("state %q, want silent", st.Peers[0].State)
		}
		network.SetCut(a.net, b.net, false)
		time.Sleep(5 * time.Second)
		if b.table.Len() != many || b.kernel.len() != many {
			t.Errorf("mirror %d, kernel %d, want %d", b.table.Len(), b.kernel.len(), many)
		}
		if p := b.Status().Peers[0]; p.Missing != 0 || p.State != "up" || p.Pulled == 0 {
			t.Errorf("%+v", p)
		}
	})
}

func TestUpdatesAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(10)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		conn := tcp(1, established, 900*time.Second)
		a.capture(conn)
		synctest.Wait() // sent at once; the next window is open
		for range 1000 {
			a.capture(conn)
		}
		conn.State = finWait
		a.capture(conn)
		time.Sleep(time.Second)
		if d, r := a.session.Sent(); d != 2 || r != 2 {
			t.Errorf("%d records in %d datagrams, want 2 in 2", r, d)
		}
		if got, _ := b.kernel.get(conn.Key); got.State != finWait {
			t.Errorf("state %d, want the last", got.State)
		}
	})
}

func TestAloneIsSyncedAfterTheStartPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, peertest.New(11), 1, newFakeKernel())
		time.Sleep(1900 * time.Millisecond)
		if a.Synced() {
			t.Fatal("synced before the start period ended")
		}
		time.Sleep(500 * time.Millisecond)
		if !a.Synced() {
			t.Error("not synced after it")
		}
	})
}

func TestResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(12)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		a.capture(tcp(1, established, 900*time.Second))
		time.Sleep(time.Second)
		before := b.Status().Peers[0].Pulled
		n, err := b.Resync(t.Context())
		if err != nil || n != 1 {
			t.Fatalf("Resync: %d peers, %v", n, err)
		}
		if got := b.Status().Peers[0].Pulled; got != before+1 {
			t.Errorf("pulled %d records, want 1", got-before)
		}
	})
}

// A peer that falls silent is waited for no longer than it takes to notice.
func TestResyncWhileAPeerFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, network := twoNodes(t, 12)
		network.SetCut(a.net, b.net, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		n, err := b.Resync(ctx)
		if took := time.Since(began); n != 1 || err != nil || took > 5*time.Second {
			t.Errorf("asked %d peers, %v after %v; want one that is given up within 5s", n, err, took)
		}
	})
}

// What one node never told the other, or lost, is found by digests and mended
// on both, though nobody asks for it; and only what differs is sent.
func TestTablesThatDifferAreMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		const same, missing = 2000, 5
		for i := range same {
			a.capture(tcp(i, established, time.Hour))
		}
		untold := func(n *node, i int) conntable.Key {
			r := conntable.Record{Connection: tcp(i, established, time.Hour), Version: n.clock.Next(), Remaining: time.Hour}
			n.kernel.serve(r.Connection)
			n.table.Apply(&r, 0)
			return r.Key
		}
		var lost []conntable.Key
		for i := range missing {
			lost = append(lost, untold(a, same+i), untold(b, same+missing+i))
		}
		time.Sleep(30 * time.Second)
		for _, n := range []*node{a, b} {
			if got := n.table.Len(); got != same+2*missing {
				t.Errorf("%s holds %d connections, want %d", n.node, got, same+2*missing)
			}
			p := n.Status().Peers[0]
			if p.DigestEqual == nil || !*p.DigestEqual || p.Repairs == 0 {
				t.Errorf("%s: %+v, want equal tables after a repair", n.node, p)
			}
			if p.Mended > same/10 {
				t.Errorf("%s: %d records were sent to mend %d", n.node, p.Mended, missing)
			}
		}
		for i, key := range lost {
			if _, ok := []*node{b, a}[i%2].kernel.get(key); !ok {
				t.Errorf("%v did not reach the other kernel", key)
			}
		}
		repairs := a.Status().Peers[0].Repairs + b.Status().Peers[0].Repairs
		time.Sleep(time.Minute)
		if now := a.Status().Peers[0].Repairs + b.Status().Peers[0].Repairs; now != repairs {
			t.Errorf("%d repairs of equal tables", now-repairs)
		}
	})
}
