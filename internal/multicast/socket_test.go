package multicast

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"saru/internal/testnet"
)

// open returns a socket of a node's eth0, at an address and port; one that is
// at group has joined it, and one that is not sends to it on the link.
func open(t *testing.T, ns testnet.Namespace, at, group netip.AddrPort) (c *net.UDPConn) {
	t.Helper()
	err := testnet.Within(ns, func() (err error) {
		if c, err = Listen(at, Config{Device: "eth0", Buffer: 1 << 20, DontFragment: true}); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn := NewConn(c, at.Addr().Is6())
		if at != group {
			return OnLink(conn, ifi)
		}
		return conn.JoinGroup(ifi, net.UDPAddrFromAddrPort(group))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What one node tells the group comes to another in batches, not back to
// itself, and not to those who listen to another group.
func TestGroup(t *testing.T) {
	for name, f := range map[string]struct{ group, other, from string }{
		"IPv4": {"239.192.0.81:8849", "239.192.0.82:8849", "10.97.0.2:8849"},
		"IPv6": {"[ff12::81]:8849", "[ff12::82]:8849", "[2001:db8:97::2]:8849"},
	} {
		t.Run(name, func(t *testing.T) {
			l := testnet.NewLAN(t, 2)
			group, other, from := netip.MustParseAddrPort(f.group), netip.MustParseAddrPort(f.other), netip.MustParseAddrPort(f.from)
			hears, deaf := open(t, l.Nodes[0], group, group), open(t, l.Nodes[0], other, other)
			own, speaks := open(t, l.Nodes[1], group, group), open(t, l.Nodes[1], from, group)
			v6 := group.Addr().Is6()
			ms := make([]ipv4.Message, 3)
			for i := range ms {
				ms[i] = ipv4.Message{Buffers: [][]byte{{byte(i)}}, Addr: net.UDPAddrFromAddrPort(group)}
			}
			if n, err := NewConn(speaks, v6).WriteBatch(ms, 0); n != len(ms) || err != nil {
				t.Fatalf("%d sent, %v", n, err)
			}
			got := make([]ipv4.Message, 8)
			for i := range got {
				got[i].Buffers = [][]byte{make([]byte, 10)}
			}
			hears.SetReadDeadline(time.Now().Add(10 * time.Second))
			for i := 0; i < len(ms); {
				n, err := NewConn(hears, v6).ReadBatch(got, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range got[:n] {
					if m.N != 1 || m.Buffers[0][0] != byte(i) || m.Addr.(*net.UDPAddr).AddrPort().Port() != from.Port() {
						t.Errorf("heard % x from %v", m.Buffers[0][:m.N], m.Addr)
					}
					i++
				}
			}
			for what, c := range map[string]*net.UDPConn{"who spoke": own, "another group": deaf} {
				c.SetReadDeadline(time.Unix(1, 0))
				if n, _, err := c.ReadFrom(make([]byte, 10)); err == nil {
					t.Errorf("%s heard %d bytes", what, n)
				}
			}
			if err := testnet.Within(l.Nodes[1], func() error { _, err := Listen(from, Config{}); return err }); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("a port that is taken: %v", err)
			}
			if _, err := speaks.WriteTo(make([]byte, 1500), net.UDPAddrFromAddrPort(group)); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("a datagram larger than the link takes: %v", err)
			}
		})
	}
}
