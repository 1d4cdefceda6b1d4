package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var (
	vip    = netip.MustParseAddr("10.9.0.100")
	shared = net.HardwareAddr{0x02, 0x00, 0x5e, 0x00, 0x01, 0xc9}
	own    = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	asker  = [6]byte{0x02, 0, 0, 0, 0, 2}
)

// inNamespace runs f on a thread of its own in a new network namespace that
// has eth0, with its far end wire.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	goleak.VerifyNone(t, goleak.IgnoreCurrent())
	done, skip := make(chan struct{}), false
	go func() {
		defer close(done)
		runtime.LockOSThread()
		ns, err := netns.New()
		if errors.Is(err, unix.EPERM) {
			skip = true
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		eth0 := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "wire"}
		eth0.Name, eth0.HardwareAddr = "eth0", own
		if err := netlink.LinkAdd(eth0); err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"lo", "eth0", "wire"} {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
		f(t)
	}()
	<-done
	if skip {
		t.Skip("needs root for network namespaces")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
}

func loAddrs(t *testing.T) (addrs []string) {
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	have, err := netlink.AddrList(lo, unix.AF_INET)
	must(t, err)
	for _, a := range have {
		addrs = append(addrs, a.IPNet.String()+" "+a.Label)
	}
	return addrs
}

var watched = []string{
	"net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce",
	"net/ipv4/conf/eth0/arp_ignore", "net/ipv4/conf/eth0/arp_announce",
}

func values(t *testing.T) (v [4]string) {
	for i, key := range watched {
		s, err := readSysctl(key)
		must(t, err)
		v[i] = s
	}
	return v
}

func hosts(addrs ...netip.Addr) (all []netip.Prefix) {
	for _, a := range addrs {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

func config() Config {
	return Config{Interface: "eth0", VIPs: hosts(vip), MAC: shared}
}

func TestOpenClose(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		must(t, os.WriteFile(path(watched[2]), []byte("2"), 0))
		addrs, before := loAddrs(t), values(t)
		l, err := Open(config())
		must(t, err)
		if got := loAddrs(t); len(got) != len(addrs)+1 || got[len(got)-1] != "10.9.0.100/32 lo:saru" {
			t.Errorf("addresses %v", got)
		}
		if got := values(t); got != [4]string{"1", "2", "1", "2"} {
			t.Errorf("sysctls %v", got)
		}
		for range 2 {
			must(t, l.Close())
		}
		if got := loAddrs(t); len(got) != len(addrs) {
			t.Errorf("addresses %v, before %v", got, addrs)
		}
		if got := values(t); got != before {
			t.Errorf("sysctls %v, before %v", got, before)
		}
	})
}

// An address that the operator had put on lo stays; and so does a sysctl that
// somebody changed meanwhile.
func TestOperatorsOwn(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		mine := loAddr(hosts(vip)[0])
		mine.Label = ""
		must(t, netlink.AddrAdd(lo, mine))
		before := loAddrs(t)
		want := values(t)
		want[1] = "1"
		l, err := Open(config())
		must(t, err)
		must(t, os.WriteFile(path(watched[1]), []byte("1"), 0))
		must(t, l.Close())
		if got := loAddrs(t); len(got) != len(before) {
			t.Errorf("addresses %v, before %v", got, before)
		}
		if got := values(t); got != want {
			t.Errorf("sysctls %v, want %v", got, want)
		}
	})
}

// After a crash the next clean stop restores what was there before the first
// start.
func TestAfterCrash(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		cfg := config()
		cfg.State = filepath.Join(t.TempDir(), "run", "lan.json")
		addrs, before := loAddrs(t), values(t)
		crashed, err := Open(cfg)
		must(t, err)
		must(t, crashed.arp.Close())
		crashed.handle.Close()
		l, err := Open(cfg)
		must(t, err)
		must(t, l.Close())
		if got := values(t); got != before {
			t.Errorf("sysctls %v, before %v", got, before)
		}
		if got := loAddrs(t); len(got) != len(addrs) {
			t.Errorf("addresses %v, before %v", got, addrs)
		}
		if _, err := os.Stat(cfg.State); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state file: %v", err)
		}
	})
}

func TestBadState(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		cfg := config()
		cfg.State = filepath.Join(t.TempDir(), "lan.json")
		before := values(t)
		for _, bad := range []string{"", "{", `{"Sysctls":{"../../etc/passwd":{"Old":"x","New":"y"}}}`, `{"Sysctls":{"net/ipv4/conf/../../../kernel/x":{}}}`, `{"Local":["x"]}`} {
			must(t, os.WriteFile(cfg.State, []byte(bad), 0o600))
			if l, err := Open(cfg); err == nil {
				t.Errorf("%q: read", bad)
				l.Close()
			}
		}
		if got := values(t); got != before || len(loAddrs(t)) != 1 {
			t.Errorf("sysctls %v, before %v; addresses %v", got, before, loAddrs(t))
		}
	})
}

// A wire is the far end of eth0, seen raw.
type wire struct{ *os.File }

func openWire(t *testing.T) wire {
	ifi, err := net.InterfaceByName("wire")
	must(t, err)
	f, err := openARP(ifi, asker)
	must(t, err)
	must(t, f.SetReadDeadline(time.Now().Add(5*time.Second)))
	return wire{f}
}

func (w wire) send(t *testing.T, p arpPacket) {
	_, err := w.Write(p.appendFrame(nil, broadcast, asker))
	must(t, err)
}

// next returns the next ARP packet that comes out of eth0, and its Ethernet
// source.
func (w wire) next(t *testing.T) (arpPacket, net.HardwareAddr) {
	buf := make([]byte, 256)
	n, err := w.Read(buf)
	must(t, err)
	p, err := parseARP(buf[:n])
	must(t, err)
	return p, net.HardwareAddr(buf[6:12])
}

// The answer carries the shared MAC inside and the interface's own outside;
// nobody answers for others, nor to those that the predicate refuses; the
// kernel never answers itself.
func TestResponder(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		friend, stranger := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.66")
		cfg := config()
		cfg.Answer = func(sender netip.Addr) bool { return sender == friend }
		l, err := Open(cfg)
		must(t, err)
		w := openWire(t)
		defer w.Close()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		<-l.Ready()

		request := arpPacket{op: opRequest, senderMAC: asker, sender: friend, target: vip}
		for _, change := range []func(*arpPacket){
			func(p *arpPacket) { p.target = netip.MustParseAddr("10.9.0.101") },
			func(p *arpPacket) { p.sender = stranger },
			func(p *arpPacket) { p.op = opReply },
			func(p *arpPacket) { p.senderMAC = broadcast },
			func(p *arpPacket) { p.sender = vip }, // says that the VIP is its own
		} {
			p := request
			change(&p)
			w.send(t, p)
		}
		w.send(t, request)
		// What was refused would have come first.
		p, from := w.next(t)
		want := arpPacket{op: opReply, senderMAC: [6]byte(shared), sender: vip, targetMAC: asker, target: friend}
		if p != want || from.String() != own.String() {
			t.Errorf("got %+v from %v", p, from)
		}
		must(t, l.Announce())
		p, from = w.next(t)
		want = arpPacket{op: opRequest, senderMAC: [6]byte(shared), sender: vip, target: vip}
		if p != want || from.String() != own.String() {
			t.Errorf("announcement %+v from %v", p, from)
		}
		if got := l.Stats(); got != (Stats{Requests: 2, Answers: 1, Conflicts: 1}) {
			t.Errorf("%+v", got)
		}
		cancel()
		must(t, <-done)
		must(t, l.Close())
	})
}

// Nothing may be sent from the shared MAC: a switch would learn it.
func TestNeverFromSharedMAC(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		l, err := Open(config())
		must(t, err)
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.LinkSetHardwareAddr(eth0, shared))
		if err := l.Announce(); err == nil {
			t.Error("announced from the shared MAC")
		}
		must(t, l.Close())
	})
}
