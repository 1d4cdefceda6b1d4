package lan

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	vip6   = netip.MustParseAddr("2001:db8:9::100")
	asker6 = netip.MustParseAddr("2001:db8:9::1")
)

// A solicitation (RFC 4861 section 4.3): 2001:db8:9::1 asks for 2001:db8:9::100.
const goldenSolicitation = "3333ff000100" + "020000000002" + "86dd" +
	"6000000000203aff" + "20010db8000900000000000000000001" + "ff0200000000000000000001ff000100" +
	"8700" + "1a18" + "00000000" + "20010db8000900000000000000000100" + "0101020000000002"

func golden(t testing.TB, text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNDWire(t *testing.T) {
	frame := golden(t, goldenSolicitation)
	want := ndPacket{kind: solicitation, src: asker6, dst: solicitedNode(vip6), target: vip6, mac: asker}
	if got := want.appendFrame(nil, multicastMAC(solicitedNode(vip6)), asker); !bytes.Equal(got, frame) {
		t.Errorf("got\n%x\nwant\n%x", got, frame)
	}
	if got, err := parseND(append(bytes.Clone(frame), 0, 0)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for what, change := range map[string]func(b []byte) []byte{
		"hop limit 254":        func(b []byte) []byte { b[21] = 254; return b },
		"wrong checksum":       func(b []byte) []byte { b[56]++; return b },
		"a router's":           func(b []byte) []byte { b[54] = 133; return b },
		"code 1":               func(b []byte) []byte { b[55] = 1; return b },
		"cut off":              func(b []byte) []byte { return b[:len(b)-1] },
		"no target":            func(b []byte) []byte { b[19] = 8; return b },
		"option of no length":  func(b []byte) []byte { b[79] = 0; return b },
		"option beyond it all": func(b []byte) []byte { b[79] = 2; return b },
		"IPv4":                 func(b []byte) []byte { b[12], b[13] = 8, 0; return b },
		"empty":                func([]byte) []byte { return nil },
	} {
		if p, err := parseND(change(bytes.Clone(frame))); err == nil {
			t.Errorf("%s: read as %+v", what, p)
		}
	}
}

func FuzzParseND(f *testing.F) {
	f.Add(golden(f, goldenSolicitation))
	f.Add((&ndPacket{kind: advertisement, src: vip6, dst: allNodes, target: vip6, mac: asker}).appendFrame(nil, broadcast, asker))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseND(b)
		if err != nil || len(b) < ndLen {
			return
		}
		again, err := parseND(p.appendFrame(nil, [6]byte(b), [6]byte(b[6:])))
		if again.flags = p.flags; err != nil || again != p {
			t.Errorf("%+v became %+v, %v", p, again, err)
		}
	})
}

// The advertisement names the shared MAC and comes from the interface's own;
// the kernel says nothing of its own.
func TestAnswersSolicitations(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		stranger := netip.MustParseAddr("2001:db8:9::66")
		cfg := config()
		cfg.VIPs = hosts(vip, vip6)
		cfg.Answer = func(sender netip.Addr) bool { return sender != stranger }
		l, err := Open(cfg)
		must(t, err)
		ifi, err := net.InterfaceByName("wire")
		must(t, err)
		w, err := openND(ifi)
		must(t, err)
		defer w.Close()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		<-l.Ready()

		solicit := func(src, target netip.Addr, mac [6]byte) {
			p := ndPacket{kind: solicitation, src: src, dst: solicitedNode(target), target: target, mac: mac}
			_, err := w.Write(p.appendFrame(nil, multicastMAC(p.dst), asker))
			must(t, err)
		}
		solicit(asker6, netip.MustParseAddr("2001:db8:9::101"), asker)
		solicit(stranger, vip6, asker)
		solicit(vip6, netip.MustParseAddr("2001:db8:9::7"), asker) // says that the VIP is its own
		solicit(asker6, vip6, asker)
		solicit(unspecified, vip6, [6]byte{}) // wants the address
		own6 := [6]byte(own)
		for _, want := range []struct {
			dst [6]byte
			ndPacket
		}{
			{asker, ndPacket{advertisement, flagSolicited | flagOverride, vip6, asker6, vip6, [6]byte(shared)}},
			{multicastMAC(allNodes), ndPacket{advertisement, flagOverride, vip6, allNodes, vip6, [6]byte(shared)}},
		} {
			frame := nextAdvertisement(t, w)
			p, err := parseND(frame)
			must(t, err)
			if p != want.ndPacket || [6]byte(frame) != want.dst || [6]byte(frame[6:]) != own6 {
				t.Errorf("got %+v in % x", p, frame[:12])
			}
		}
		must(t, l.Announce())
		if p, err := parseND(nextAdvertisement(t, w)); err != nil || p.target != vip6 || p.flags != flagOverride || p.mac != [6]byte(shared) {
			t.Errorf("announced %+v, %v", p, err)
		}
		cancel()
		must(t, <-done)
		if got := l.Stats(); got != (Stats{Requests: 3, Answers: 2, Conflicts: 1}) {
			t.Errorf("%+v", got)
		}
		must(t, l.Close())
	})
}

// nextAdvertisement returns the next neighbour advertisement of a virtual
// address: the kernels speak of their own, too.
func nextAdvertisement(t *testing.T, w *os.File) []byte {
	must(t, w.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 256)
	for {
		n, err := w.Read(buf)
		must(t, err)
		if p, err := parseND(buf[:n]); err == nil && p.kind == advertisement && p.target == vip6 {
			return buf[:n]
		}
	}
}

// An IPv6 address, a network of each family, and the group: there while the LAN
// is open, and gone after it, or after the clean stop that follows a crash.
func TestLocalAddressesAndNetworks(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		show := func() string {
			var all []string
			for _, args := range []string{"-6 addr show dev lo", "route show table local", "-6 route show table local", "maddr show dev eth0"} {
				out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v: %s", args, err, out)
				}
				all = append(all, string(out))
			}
			return strings.Join(all, "\n")
		}
		cfg := config()
		cfg.VIPs = append(hosts(vip, vip6), netip.MustParsePrefix("10.9.7.0/24"), netip.MustParsePrefix("2001:db8:7::/64"))
		cfg.State = filepath.Join(t.TempDir(), "lan.json")
		crashed, err := Open(cfg)
		must(t, err)
		ours := []string{
			"2001:db8:9::100/128 scope global nodad deprecated", "local 10.9.7.0/24 dev lo proto 201", "local 2001:db8:7::/64 dev lo proto 201",
			"inet6 ff02::1:ff00:100",
		}
		now := show()
		for _, want := range ours {
			if !strings.Contains(now, want) {
				t.Errorf("%q is not in:\n%s", want, now)
			}
		}
		must(t, errors.Join(crashed.arp.Close(), crashed.nd.Close(), crashed.groups.Close()))
		crashed.handle.Close()
		l, err := Open(cfg)
		must(t, err)
		must(t, l.Close())
		after := show()
		for _, gone := range ours {
			if strings.Contains(after, gone) {
				t.Errorf("%q is left in:\n%s", gone, after)
			}
		}
	})
}

// Where the operator has the network's route already, it stays.
func TestOperatorsRoute(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		network := netip.MustParsePrefix("10.9.7.0/24")
		mine := localRoute(lo, network)
		mine.Protocol = unix.RTPROT_STATIC
		must(t, netlink.RouteAdd(mine))
		cfg := config()
		cfg.VIPs = []netip.Prefix{network}
		l, err := Open(cfg)
		must(t, err)
		must(t, l.Close())
		must(t, netlink.RouteDel(mine))
	})
}

// Somebody who sets the sysctls anew is put right.
func TestKeepsSettings(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		before := values(t)
		l, err := Open(config())
		must(t, err)
		must(t, os.WriteFile(path(watched[3]), []byte("0"), 0))
		changed, err := l.keepSettings()
		must(t, err)
		if len(changed) != 1 || !strings.Contains(changed[0], "net.ipv4.conf.eth0.arp_announce") {
			t.Errorf("changed: %v", changed)
		}
		if got := values(t); got != [4]string{"1", "2", "1", "2"} {
			t.Errorf("sysctls %v", got)
		}
		must(t, l.Close())
		if got := values(t); got != before {
			t.Errorf("sysctls %v, before %v", got, before)
		}
	})
}
