package firstpacket

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Byte order of the machines that this is run on: little-endian.
const (
	goldenVerdict = `20000000 0103 0100 00000000 00000000 00 00 5a29  0c00 0200 00000001 00000007`
	goldenPacket  = `4c000000 0003 0000 00000000 00000000 02 00 5a29
		0b00 0100 00000007 0800 04 00
		2c00 0a00 45000028 00000000 4006 0000 0a01 0001 0a09 0064 9c40 0050 00000000 00000000 50 02 0000 00000000`
)

func TestWire(t *testing.T) {
	if got, want := verdictMessage(queue, 7), unhex(t, goldenVerdict); !bytes.Equal(got, want) {
		t.Errorf("verdict\n got %x\nwant %x", got, want)
	}
	p, ok, answer, _, rest, err := next(unhex(t, goldenPacket))
	want := Packet{7, netip.MustParseAddrPort("10.1.0.1:40000"), netip.MustParseAddrPort("10.9.0.100:80")}
	if err != nil || !ok || answer || len(rest) != 0 || p != want {
		t.Errorf("packet %+v, %v, %v, rest %x, %v", p, ok, answer, rest, err)
	}
	if k := element(want.Target).Key; !bytes.Equal(k, unhex(t, "0a090064 0050 0000")) {
		t.Errorf("element %x", k)
	}
}

func FuzzNext(f *testing.F) {
	f.Add(unhex(f, goldenPacket))
	f.Add(unhex(f, goldenVerdict))
	f.Add(bindMessage(queue, 10, 10))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			p, ok, answer, _, rest, err := next(b)
			if err != nil {
				return
			}
			if ok && (answer || !p.Client.IsValid() || !p.Target.IsValid()) || len(rest) >= len(b) {
				t.Fatalf("%+v, %v, rest of %d bytes %d", p, answer, len(b), len(rest))
			}
			b = rest
		}
	})
}

// The table is made, changed and removed on this machine's own kernel, if it
// has what is needed.
func TestGateIsMadeAndRemoved(t *testing.T) {
	var cannot error
	defer func() {
		if cannot != nil {
			t.Skip("this kernel cannot: ", cannot)
		}
	}()
	inNamespace(t, func() {
		g, err := Open(func(Packet) {})
		if err != nil {
			cannot = err
			return
		}
		targets := map[netip.AddrPort]struct{}{
			netip.MustParseAddrPort("10.9.0.100:80"): {}, netip.MustParseAddrPort("[2001:db8::1]:443"): {},
		}
		if err := g.SetTargets(targets); err != nil {
			t.Error(err)
		}
		if err := g.SetTargets(map[netip.AddrPort]struct{}{netip.MustParseAddrPort("10.9.0.100:80"): {}}); err != nil {
			t.Error(err)
		}
		if again, err := g.Restore(); again || err != nil {
			t.Errorf("what nobody touched was made again: %v, %v", again, err)
		}
		for name, harm := range map[string]func(*nftables.Conn){
			"the whole ruleset":    func(c *nftables.Conn) { c.FlushRuleset() },
			"the rules":            func(c *nftables.Conn) { c.FlushTable(table()) },
			"the targets of a set": func(c *nftables.Conn) { c.FlushSet(set(table(), false)) },
		} {
			flush(t, harm)
			if again, err := g.Restore(); !again || err != nil {
				t.Errorf("%s flushed: made again %v, %v", name, again, err)
			}
			if n, err := holds(); n != 1 || err != nil {
				t.Errorf("%s flushed: %d targets, %v; want 1", name, n, err)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := remove(); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
	})
}

func flush(t *testing.T, what func(*nftables.Conn)) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Error(err)
		return
	}
	what(c)
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

// inNamespace runs fn on a thread in a network namespace of its own, which
// goes with it.
func inNamespace(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // it ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Logf("no network namespace: %v", err)
			return
		}
		fn()
	}()
	<-done
}
