package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/metrics"
	"saru/syncproto/legacy"
	"saru/syncproto/peer"
	"saru/syncproto/peer/peertest"
)

// A fakeLegacy is a network of legacy directors, which takes what it is told.
type fakeLegacy struct {
	mu   sync.Mutex
	told map[conntable.Key][]conntable.Connection
	up   chan struct{}
}

func (l *fakeLegacy) Run(ctx context.Context) error { close(l.up); <-ctx.Done(); return nil }
func (l *fakeLegacy) Ready() <-chan struct{}        { return l.up }
func (l *fakeLegacy) String() string                { return "fake legacy" }
func (l *fakeLegacy) Stats() legacy.Stats           { return legacy.Stats{} }

func (l *fakeLegacy) Send(conns []conntable.Connection) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.told[c.Key] = append(l.told[c.Key], c)
	}
	return len(conns), nil
}

// of returns what it was told of a connection.
func (l *fakeLegacy) of(c conntable.Connection) []conntable.Connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told[c.Key]
}

// startBridged starts an engine that speaks with legacy directors, for a
// service with the real servers realA and realB.
func startBridged(t *testing.T, network *peertest.Network, i int, k *fakeKernel) (*node, *Bridge, *fakeLegacy) {
	t.Helper()
	return startBridgedOf(t, network, i, k, 0)
}

// startBridgedOf is startBridged with a mirror of so many entries.
func startBridgedOf(t *testing.T, network *peertest.Network, i int, k *fakeKernel, limit int) (*node, *Bridge, *fakeLegacy) {
	t.Helper()
	for _, r := range []netip.AddrPort{realA, realB} {
		k.targets[Target{Virtual: vip, Protocol: 6, Dest: r}] = struct{}{}
	}
	n := &node{kernel: k, net: network.Node(i)}
	n.Engine = New(Config{Node: fmt.Sprintf("d%d", i), Keys: testKeys, Transport: n.net, Log: slog.New(slog.DiscardHandler), Limit: limit})
	n.SetKernel(k)
	b := NewBridge(n.Engine, LegacySettings{Interface: "eth0", SyncID: 7, Resend: time.Minute})
	link := &fakeLegacy{told: map[conntable.Key][]conntable.Connection{}, up: make(chan struct{})}
	b.SetLink(link)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- n.Run(ctx) }()
	go func() { done <- b.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("%s: %v", n.node, err)
			}
		}
	})
	t.Cleanup(n.stop)
	return n, b, link
}

// Who starts syncd waits for legacy directors to be heard, but not while a long
// table is read, before which they are not.
func TestLegacyIsReady(t *testing.T) {
	for name, slices := range map[string]int{"a short table": 1, "a long table": 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel()
				k.slow = time.Second
				for i := range slices * slice {
					k.found = append(k.found, tcp(i, established, 900*time.Second))
				}
				_, bridge, link := startBridged(t, peertest.New(1), 1, k)
				time.Sleep(foundAtOnce + time.Second/2)
				if long := slices > 1; !closed(bridge.Ready()) || closed(link.up) == long {
					t.Errorf("ready %v, heard %v; want true, %v", closed(bridge.Ready()), closed(link.up), !long)
				}
				time.Sleep(time.Duration(slices) * k.slow)
				if !closed(link.up) {
					t.Error("never heard")
				}
			})
		})
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// What has no key leaves a tenth of the mirror free, tombstones included.
func TestLegacyLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, bridge, _ := startBridgedOf(t, peertest.New(1), 1, newFakeKernel(), 10_000)
		time.Sleep(3 * time.Second)
		for i := range 9000 {
			c := conntable.Record{Connection: tcp(i, established, 900*time.Second), Version: n.clock.Next(), Deleted: i%2 == 0}
			c.Remaining = c.Timeout
			n.table.Apply(&c, 0)
		}
		c := tcp(9000, established, 900*time.Second)
		bridge.Heard(&c)
		if st := n.Status().Legacy; st.Taken != 0 || st.Drops["full"] != 1 {
			t.Errorf("with 9,000 of 10,000 places taken: %+v", st)
		}
	})
}

func TestLegacyWordReachesAllKernels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		a, bridge, link := startBridged(t, network, 1, newFakeKernel())
		b := start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		c := tcp(1, established, 900*time.Second)
		heard := c
		heard.Flags |= conntable.FlagSync
		bridge.Heard(&heard)
		time.Sleep(20 * time.Millisecond)
		for _, n := range []*node{a, b} {
			if got, ok := n.kernel.get(c.Key); !ok || got.State != established || got.Dest != c.Dest || got.Timeout != 900*time.Second || got.Flags != c.Flags {
				t.Errorf("%s's kernel has %+v, %v", n.node, got, ok)
			}
		}
		// Told once a packet, it is no news.
		for range 100 {
			bridge.Heard(&heard)
		}
		time.Sleep(20 * time.Millisecond)
		if d, r := a.session.Sent(); r != 1 {
			t.Errorf("the peers were told %d records in %d datagrams, want 1", r, d)
		}
		// Its life is lengthened before it ends.
		time.Sleep(60 * time.Second)
		bridge.Heard(&heard)
		time.Sleep(20 * time.Millisecond)
		var r conntable.Record
		if !b.table.Lookup(c.Key, &r) || r.Remaining < 899*time.Second {
			t.Errorf("b has it for %v more, want 900 s", r.Remaining)
		}
		heard.State, heard.Timeout = finWait, 120*time.Second
		bridge.Heard(&heard)
		time.Sleep(time.Minute + 20*time.Millisecond)
		if got, _ := b.kernel.get(c.Key); got.State != finWait {
			t.Errorf("b's kernel has state %d, want %d", got.State, finWait)
		}
		if told := link.of(c); len(told) != 0 {
			t.Errorf("legacy directors were told what they said: %+v", told)
		}
		if st := a.Status().Legacy; st.Taken != 3 || st.Drops["known"] != 100 {
			t.Errorf("%+v", st)
		}
	})
}

// What a legacy director's kernel held back for seconds is not newer than what
// happened here meanwhile.
func TestLegacyWordIsNotTakenOverNewerState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, bridge, _ := startBridged(t, peertest.New(2), 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		c := tcp(1, finWait, 120*time.Second)
		a.capture(c)
		time.Sleep(2 * time.Second)
		old := tcp(1, established, 900*time.Second)
		bridge.Heard(&old)
		time.Sleep(20 * time.Millisecond)
		var r conntable.Record
		if !a.table.Lookup(c.Key, &r) || r.State != finWait || a.kernel.injections() != 0 {
			t.Errorf("mirror has state %d, the kernel was told %d records", r.State, a.kernel.injections())
		}
		if st := a.Status().Legacy; st.Drops["older"] != 1 {
			t.Errorf("%+v", st)
		}
		// Later it is: the connection moved to the legacy director.
		time.Sleep(2 * time.Second)
		bridge.Heard(&old)
		time.Sleep(20 * time.Millisecond)
		if got, ok := a.kernel.get(c.Key); !ok || got.State != established {
			t.Errorf("the kernel has %+v, %v", got, ok)
		}
		// And back.
		c.State = 7
		a.capture(c)
		bridge.Heard(&old)
		time.Sleep(20 * time.Millisecond)
		if !a.table.Lookup(c.Key, &r) || r.State != 7 || r.Version.Node != a.self {
			t.Errorf("mirror has %+v", r)
		}
	})
}

// While legacy directors talk, tables that hold the same are found to.
func TestDigestsBesideLegacyDirectors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(4)
		a, bridge, _ := startBridged(t, network, 1, newFakeKernel())
		b := start(t, network, 2, newFakeKernel())
		time.Sleep(10 * time.Second)
		for i := range 20_000 { // 1,000 a second
			c := tcp(i, established, 900*time.Second)
			bridge.Heard(&c)
			if time.Sleep(time.Millisecond); i%200 > 0 {
				continue
			}
			for _, p := range []peer.PeerStatus{a.peerOf(t, "d2"), b.peerOf(t, "d1")} {
				if p.DigestEqual == nil || !*p.DigestEqual || p.Repairs > 0 {
					t.Fatalf("after %d words: %+v", i, p)
				}
			}
		}
		time.Sleep(time.Second)
		if n := b.table.Len(); n != 20_000 {
			t.Errorf("the peer has %d connections", n)
		}
	})
}

// Without a key nobody may make a director forward to where its own services
// do not.
func TestLegacyStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.targets[Target{FWMark: 5, Protocol: 6, Dest: realA}] = struct{}{}
		a, bridge, _ := startBridged(t, peertest.New(3), 1, k)
		time.Sleep(3 * time.Second)
		other := netip.MustParseAddrPort("10.66.0.1:80")
		client := 0
		for name, x := range map[string]struct {
			change func(*conntable.Connection)
			taken  bool
		}{
			"real server":     {func(c *conntable.Connection) { c.Dest = other }, false},
			"virtual address": {func(c *conntable.Connection) { c.Virtual = other }, false},
			"mark":            {func(c *conntable.Connection) { c.Virtual = other; c.FWMark = 6 }, false},
			"method":          {func(c *conntable.Connection) { c.Flags |= 7 }, false},
			"marked service":  {func(c *conntable.Connection) { c.Virtual = other; c.FWMark = 5 }, true},
			"marked template": {func(c *conntable.Connection) {
				c.Protocol, c.Template, c.State = 0, true, 0
				c.Virtual = netip.MustParseAddrPort("0.0.0.5:0")
				c.Flags |= conntable.FlagTemplate
			}, true},
			"data connection": {func(c *conntable.Connection) { c.Virtual = netip.AddrPortFrom(vip.Addr(), 20) }, true},
		} {
			client += 2
			c := tcp(client, established, 900*time.Second)
			x.change(&c)
			bridge.Heard(&c)
			var r conntable.Record
			if got := a.table.Lookup(c.Key, &r); got != x.taken {
				t.Errorf("%s: taken %v, want %v", name, got, x.taken)
			}
		}
		long := tcp(4, established, 1<<31*time.Second)
		bridge.Heard(&long)
		var r conntable.Record
		if !a.table.Lookup(long.Key, &r) || r.Remaining > legacyLongest {
			t.Errorf("a life of %v was believed", r.Remaining)
		}
		untold := tcp(6, finWait, 0)
		bridge.Heard(&untold)
		if !a.table.Lookup(untold.Key, &r) || r.Timeout != 120*time.Second {
			t.Errorf("timeout %v where none was told, want the kernel's 120 s", r.Timeout)
		}
	})
}

// What saru says is served here, no legacy director knows better.
func TestLegacyWordOnWhatIsServedHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, bridge, _ := startBridged(t, peertest.New(6), 1, newFakeKernel())
		stop := a.serves(t, true)
		defer stop()
		time.Sleep(time.Minute)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		time.Sleep(10 * time.Second) // longer than a legacy director's word may be old
		c.State, c.Timeout = finWait, 120*time.Second
		bridge.Heard(&c)
		time.Sleep(20 * time.Millisecond)
		var r conntable.Record
		if !a.table.Lookup(c.Key, &r) || r.State != established || a.kernel.injections() != 0 {
			t.Errorf("mirror has state %d, the kernel was told %d records", r.State, a.kernel.injections())
		}
		if st := a.Status().Legacy; st.Drops["served_here"] != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestLegacyDirectorsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(4)
		k := newFakeKernel()
		own, synced := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second)
		k.found = []conntable.Connection{own, synced}
		k.synced = map[conntable.Key]bool{synced.Key: true}
		a, _, link := startBridged(t, network, 1, k)
		b := start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		if len(link.of(own)) != 1 || len(link.of(synced)) != 0 {
			t.Errorf("at start: told %d times of a connection of ours, %d times of one that came by sync; want 1 and 0", len(link.of(own)), len(link.of(synced)))
		}
		c, theirs, gone := tcp(3, established, 900*time.Second), tcp(4, established, 900*time.Second), tcp(5, established, 900*time.Second)
		a.capture(c)
		a.capture(gone)
		b.capture(theirs)
		time.Sleep(20 * time.Millisecond)
		if told := link.of(c); len(told) != 1 || told[0].State != established || told[0].Timeout != 900*time.Second {
			t.Errorf("told %+v of a new connection", told)
		}
		k.lost(gone.Key)
		a.queued(a.table.Delete(gone.Key, a.clock.Next(), a.newsFor()))
		time.Sleep(20 * time.Millisecond)
		if told := link.of(gone); len(told) != 2 || told[1].State != tcpClose || told[1].Timeout != time.Second {
			t.Errorf("told %+v of a connection that is gone", told)
		}
		// All of ours, again and again, with what remains: never longer than
		// the truth; until half of their life is over.
		for i := range 5 {
			time.Sleep(time.Minute)
			told := link.of(c)
			if len(told) != i+2 || told[len(told)-1].Timeout > (900-time.Duration(i)*60)*time.Second {
				t.Fatalf("after %d minutes: told %+v", i+1, told)
			}
		}
		time.Sleep(8 * time.Minute)
		if told := link.of(c); len(told) > 9 || told[len(told)-1].Timeout < 449*time.Second {
			t.Errorf("after 13 minutes of silence: told %d times, with %v at last", len(told), told[len(told)-1].Timeout)
		}
		if len(link.of(theirs)) != 0 {
			t.Error("told of a connection that the peer has to tell")
		}
		if len(link.of(gone)) != 2 {
			t.Errorf("told %d times of a connection that is gone", len(link.of(gone)))
		}
		t300 := template("10.1.0.7", realB)
		a.capture(t300)
		time.Sleep(10 * time.Minute)
		if told := link.of(t300); len(told) < 2 || len(told) > 4 {
			t.Errorf("a template of 300 s was told %d times; want some, in the first half of its life", len(told))
		}
	})
}

func TestLegacyInStatusAndMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, bridge, _ := startBridged(t, peertest.New(5), 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		c := tcp(1, established, 900*time.Second)
		c.Dest = netip.MustParseAddrPort("10.66.0.1:80")
		bridge.Heard(&c)
		var text strings.Builder
		st := a.Status()
		must(t, st.Print(&text))
		if !strings.Contains(text.String(), "legacy       on eth0, syncid 7") || !strings.Contains(text.String(), "not taken: unknown_service 1") {
			t.Errorf("status:\n%s", text.String())
		}
		w := httptest.NewRecorder()
		metrics.Handler("syncd", a.Scrape).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, want := range []string{"\nsyncd_legacy_up 1\n", `syncd_legacy_drops_total{reason="unknown_service"} 1`} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("metrics lack %q", want)
			}
		}
	})
}
