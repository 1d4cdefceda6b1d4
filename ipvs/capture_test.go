package ipvs

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"saru/conntable"
)

// TestCaptureInject: a TCP connection made through one director is captured
// there soon, injected into another, seen in its table as it is, and deleted.
func TestCaptureInject(t *testing.T) {
	if !inside(t) {
		return
	}
	serving(t)
	rec := newRecorder()
	cfg := testConfig(t)
	cfg.OnRecord = rec.record
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if ok, why := tap.Healthy(); !ok {
		t.Fatalf("not healthy: %s", why)
	}
	b := newPeer(t)

	const conns = 20
	var delays []time.Duration
	for range conns {
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		made := time.Now()
		got, err := rec.wait(addrOf(c.LocalAddr()), 1)
		if err != nil {
			t.Fatalf("%v; %+v", err, tap.Stats())
		}
		delays = append(delays, got.at.Sub(made))
		ans := b.ask("inject", got.Connection)
		eventually(t, "injected entry in the other director's table", func() bool {
			ans = b.ask("find", got.Connection)
			return ans.Found
		})
		e := ans.Entry
		if e.State != 1 || e.Dest != got.Dest || !e.Synced || e.Expires > 900*time.Second || e.Expires < 890*time.Second {
			t.Errorf("entry %+v of %+v", e, got.Connection)
		}
		b.ask("delete", got.Connection)
		eventually(t, "deleted entry gone from the other director's table", func() bool {
			return !b.ask("find", got.Connection).Found
		})
	}
	slices.Sort(delays)
	median := delays[len(delays)/2]
	t.Logf("capture after the handshake: median %v, max %v; heartbeat's own delay %v", median, delays[len(delays)-1], tap.Stats().BeatDelay)
	if median > 500*time.Millisecond {
		t.Errorf("median %v: the heartbeat does not push records out", median)
	}
	s := tap.Stats()
	t.Logf("%+v", s)
	if s.CaptureDrops != 0 || s.InjectDrops != 0 || !s.Guarded {
		t.Errorf("%+v", s)
	}
}

// TestBurst: no record is lost when many connections come at once.
func TestBurst(t *testing.T) {
	if !inside(t) {
		return
	}
	ln := serving(t)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	var mu sync.Mutex
	established := map[netip.AddrPort]bool{}
	cfg := testConfig(t)
	cfg.OnRecord = func(c *conntable.Connection) {
		mu.Lock()
		defer mu.Unlock()
		if c.State == 1 {
			established[c.Client] = true
		}
	}
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	const n = 2000
	start := time.Now()
	var clients []netip.AddrPort
	for range n {
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, addrOf(c.LocalAddr()))
		c.Close()
	}
	took := time.Since(start)
	eventually(t, "every connection captured as established", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			if !established[c] {
				return false
			}
		}
		return true
	})
	s := tap.Stats()
	t.Logf("%d connections in %v, %.0f/s; %+v", n, took, n/took.Seconds(), s)
	if s.CaptureDrops != 0 {
		t.Errorf("%+v", s)
	}
}

// TestIPv6: an IPv6 connection goes in through the IPv4 group and reads back.
func TestIPv6(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	c := bulk(1)[0]
	c.Client = netip.MustParseAddrPort("[2001:db8::1]:1024")
	c.Virtual = netip.MustParseAddrPort("[2001:db8::100]:80")
	c.Dest = netip.MustParseAddrPort("[2001:db8::5]:80")
	if err := tap.Inject([]conntable.Connection{c}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "IPv6 entry in the table", func() bool {
		e, ok, err := inTable(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		return ok && e.Dest == c.Dest && e.State == 1
	})
}
