package ipvs

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
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
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
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
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
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

// TestRecord: every message that the kernel sends for persistent, marked, SIP
// and plain connections decodes without a drop and encodes to the same bytes.
// With -v it prints the messages, for kernelsync's testdata.
func TestRecord(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := errors.Join(
		serve(),
		ipvsadm("-A", "-t", vip+":81", "-s", "rr", "-p", "90"),
		ipvsadm("-a", "-t", vip+":81", "-r", vip+":81", "-g"),
		ipvsadm("-A", "-u", vip+":53", "-s", "rr"),
		ipvsadm("-a", "-u", vip+":53", "-r", vip+":53", "-g"),
	); err != nil {
		t.Fatal(err)
	}
	sip := errors.Join(
		exec.Command("modprobe", "ip_vs_pe_sip").Run(),
		ipvsadm("-A", "-u", vip+":5060", "-s", "rr", "-p", "90", "--pe", "sip"),
		ipvsadm("-a", "-u", vip+":5060", "-r", vip+":5060", "-g"),
	)
	if sip != nil {
		t.Logf("without SIP: %v", sip)
	}
	cfg := testConfig(t)
	cfg.MaxLen = 1472
	cfg.BeatRate = 1 // so that few of the printed records are heartbeats
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	}()
	call := "INVITE sip:a@b SIP/2.0\r\nCall-ID: 123456789012@10.81.0.1\r\n\r\n"
	for _, to := range []struct{ network, port, say string }{
		{"udp", "53", "x"},
		{"udp", "5060", call},
		{"tcp", "80", ""},
		{"tcp", "81", ""},
	} {
		var c net.Conn
		addr := net.JoinHostPort(vip, to.port)
		if to.network == "tcp" {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
		} else {
			pc, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
		}
		if c, err = net.Dial(to.network, addr); err != nil {
			t.Fatal(err)
		}
		if to.say != "" {
			if _, err := io.WriteString(c, to.say); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
	protos := map[string]int{}
	for _, c := range messages(t, tap) {
		protos[kindOf(&c)]++
	}
	t.Log(protos)
	for _, want := range []string{"6 false ", "6 true ", "17 false "} {
		if protos[want] == 0 {
			t.Errorf("no record of %q", want)
		}
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
