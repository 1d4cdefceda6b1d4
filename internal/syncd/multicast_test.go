package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"saru/syncproto/peer"
)

// A lan is a bridge with a namespace for each node on it.
type lan struct {
	t      *testing.T
	bridge netns.NsHandle
	nodes  []netns.NsHandle
}

func newLAN(t *testing.T, nodes int) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	l := &lan{t: t, bridge: newNS(t)}
	h := handle(t, l.bridge)
	must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	up(t, h, "br0")
	for i := range nodes {
		l.nodes = append(l.nodes, newNS(t))
		l.plug(h, i)
	}
	return l
}

// plug connects node i, as 10.97.0.i+1.
func (l *lan) plug(h *netlink.Handle, i int) {
	t := l.t
	port := fmt.Sprintf("port%d", i)
	must(t, h.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(l.nodes[i])),
	}))
	br, err := h.LinkByName("br0")
	must(t, err)
	p, err := h.LinkByName(port)
	must(t, err)
	must(t, h.LinkSetMaster(p, br))
	up(t, h, port)
	nh := handle(t, l.nodes[i])
	up(t, nh, "lo")
	eth, err := nh.LinkByName("eth0")
	must(t, err)
	for _, a := range []string{fmt.Sprintf("10.97.0.%d/24", i+1), fmt.Sprintf("2001:db8:97::%d/64", i+1)} {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, nh.AddrAdd(eth, addr))
	}
	up(t, nh, "eth0")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func up(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	must(t, h.LinkSetUp(l))
}

func handle(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns)
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	must(t, err)
	defer before.Close()
	ns, err := netns.New()
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	must(t, netns.Set(before))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// within runs do in the namespace.
func within(ns netns.NsHandle, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	defer netns.Set(before)
	return do()
}

// An nsTransport dials from its namespace; the sockets that a UDP has are
// there already.
type nsTransport struct {
	*peer.UDP
	ns netns.NsHandle
}

func (n nsTransport) Dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	err = within(n.ns, func() error { c, err = n.UDP.Dial(ctx, to); return err })
	return c, err
}

func (l *lan) start(i int, peers ...netip.AddrPort) *node {
	return l.startIn(peer.DefaultGroup, i, peers...)
}

func (l *lan) startIn(group netip.AddrPort, i int, peers ...netip.AddrPort) *node {
	t := l.t
	t.Helper()
	var udp *peer.UDP
	must(t, within(l.nodes[i], func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		udp, err = peer.NewUDP(peer.UDPConfig{Interface: ifi, Group: group, Peers: peers})
		return err
	}))
	n := &node{kernel: newFakeKernel()}
	n.Engine = New(Config{Node: fmt.Sprintf("d%d", i+1), Keys: testKeys, Transport: nsTransport{udp, l.nodes[i]}, Log: slog.New(slog.DiscardHandler)})
	n.SetKernel(n.kernel)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", n.node, err)
		}
		udp.Close()
	})
	t.Cleanup(n.stop)
	return n
}

// await waits until what is true. Its time is a bound for a stuck test, no
// assertion.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestThreeNodesOnALAN(t *testing.T) {
	unicast := func(i, nodes int) (out []netip.AddrPort) {
		for j := range nodes {
			if j != i {
				out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, 0, byte(j + 1)}), peer.DefaultGroup.Port()))
			}
		}
		return out
	}
	none := func(int, int) []netip.AddrPort { return nil }
	for _, c := range []struct {
		name  string
		group netip.AddrPort
		peers func(i, nodes int) []netip.AddrPort
	}{
		{"multicast", peer.DefaultGroup, none},
		{"IPv6 multicast", peer.DefaultGroup6, none},
		{"unicast", peer.DefaultGroup, unicast},
	} {
		t.Run(c.name, func(t *testing.T) {
			const each = 3000
			l := newLAN(t, 3)
			nodes := []*node{l.startIn(c.group, 0, c.peers(0, 3)...), l.startIn(c.group, 1, c.peers(1, 3)...)}
			for _, n := range nodes {
				await(t, n.node+" synced", n.Synced)
			}
			for i := range each {
				for j, n := range nodes {
					n.capture(tcp(j*each+i, established, 900*time.Second))
				}
			}
			await(t, "both told both", func() bool {
				return nodes[0].kernel.len() == each && nodes[1].kernel.len() == each
			})
			joiner := l.startIn(c.group, 2, c.peers(2, 3)...)
			await(t, "the joiner synced", joiner.Synced)
			if joiner.kernel.len() != 2*each {
				t.Errorf("synced with %d of %d connections in the kernel", joiner.kernel.len(), 2*each)
			}
			last := tcp(2*each, established, 900*time.Second)
			joiner.capture(last)
			for _, n := range nodes {
				await(t, n.node+" told the joiner's news", func() bool { _, ok := n.kernel.get(last.Key); return ok })
			}
			for _, n := range append(nodes, joiner) {
				st := n.Status()
				if len(st.Peers) != 2 || st.Drops["own"] != 0 || st.Drops["forged"] != 0 {
					t.Errorf("%s: %+v", n.node, st)
				}
			}
		})
	}
}

func TestSecondOnTheSamePort(t *testing.T) {
	l := newLAN(t, 1)
	l.start(0)
	err := within(l.nodes[0], func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		u, err := peer.NewUDP(peer.UDPConfig{Interface: ifi, Group: peer.DefaultGroup})
		if err == nil {
			u.Close()
		}
		return err
	})
	wantBad(t, err, "port 8849 is taken on 10.97.0.1")
}
