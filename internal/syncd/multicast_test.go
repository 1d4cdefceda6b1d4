package syncd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/testnet"
	"saru/syncproto/peer"
)

// A lan is a LAN with syncds on its nodes.
type lan struct {
	*testnet.LAN
	t *testing.T
}

func newLAN(t *testing.T, nodes int) *lan {
	t.Helper()
	return &lan{testnet.NewLAN(t, nodes), t}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An nsTransport dials from its namespace; the sockets that a UDP has are
// there already.
type nsTransport struct {
	*peer.UDP
	ns testnet.Namespace
}

func (n nsTransport) Dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	err = testnet.Within(n.ns, func() error { c, err = n.UDP.Dial(ctx, to); return err })
	return c, err
}

func (l *lan) start(i int, peers ...netip.AddrPort) *node {
	return l.startIn(peer.DefaultGroup, i, peers...)
}

func (l *lan) startIn(group netip.AddrPort, i int, peers ...netip.AddrPort) *node {
	t := l.t
	t.Helper()
	var udp *peer.UDP
	must(t, testnet.Within(l.Nodes[i], func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		udp, err = peer.NewUDP(peer.UDPConfig{Interface: ifi, Group: group, Peers: peers})
		return err
	}))
	n := &node{kernel: newFakeKernel()}
	n.Engine = New(Config{Node: fmt.Sprintf("d%d", i+1), Keys: testKeys, Transport: nsTransport{udp, l.Nodes[i]}, Log: slog.New(slog.DiscardHandler)})
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
				testnet.Await(t, n.node+" synced", n.Synced)
			}
			for i := range each {
				for j, n := range nodes {
					n.capture(tcp(j*each+i, established, 900*time.Second))
				}
			}
			testnet.Await(t, "both told both", func() bool {
				return nodes[0].kernel.len() == each && nodes[1].kernel.len() == each
			})
			joiner := l.startIn(c.group, 2, c.peers(2, 3)...)
			testnet.Await(t, "the joiner synced", joiner.Synced)
			if joiner.kernel.len() != 2*each {
				t.Errorf("synced with %d of %d connections in the kernel", joiner.kernel.len(), 2*each)
			}
			last := tcp(2*each, established, 900*time.Second)
			joiner.capture(last)
			for _, n := range nodes {
				testnet.Await(t, n.node+" told the joiner's news", func() bool { _, ok := n.kernel.get(last.Key); return ok })
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

// What the headers leave of the MTU is taken by the system, and one byte more
// is not: over IPv6, too, and without an interface that tells its MTU.
func TestLargestDatagram(t *testing.T) {
	for _, c := range []struct{ group, peer string }{
		{"239.192.0.81:8849", ""},
		{"[ff12::81]:8849", ""},
		{"239.192.0.81:8849", "10.97.0.2:8849"},
		{"239.192.0.81:8849", "[2001:db8:97::2]:8849"},
	} {
		l := newLAN(t, 2)
		must(t, testnet.Within(l.Nodes[0], func() error {
			cfg := peer.UDPConfig{Group: netip.MustParseAddrPort(c.group)}
			var err error
			if c.peer != "" {
				cfg.Peers = []netip.AddrPort{netip.MustParseAddrPort(c.peer)}
			} else if cfg.Interface, err = net.InterfaceByName("eth0"); err != nil {
				return err
			}
			u, err := peer.NewUDP(cfg)
			if err != nil {
				return err
			}
			defer u.Close()
			most := 1500 - u.Headers()
			if err := u.Broadcast([][]byte{make([]byte, most)}); err != nil {
				t.Errorf("%+v: %d bytes: %v", c, most, err)
			}
			if err := u.Broadcast([][]byte{make([]byte, most+1)}); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("%+v: %d bytes: %v", c, most+1, err)
			}
			return nil
		}))
	}
}

func TestSecondOnTheSamePort(t *testing.T) {
	l := newLAN(t, 1)
	l.start(0)
	err := testnet.Within(l.Nodes[0], func() error {
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
