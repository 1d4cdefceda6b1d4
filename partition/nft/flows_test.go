package nft_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"saru/partition"
)

// Real sockets in both families: the client side of what packets_test.go says
// packet by packet.

var vip6 = netip.MustParseAddr("2001:db8:9::100")

// newDual makes a network whose directors serve a virtual address of each
// family. All hosts have 2001:db8:9::N beside 10.9.0.N.
func newDual(t testing.TB, n int) (*network, partition.Plan) {
	t.Helper()
	cfg := config(time.Minute)
	cfg.Plan.VIPs = partition.Hosts(vip, vip6)
	w := newNetwork(t, n, cfg)
	w.resolve()
	w.client.run("ip -6 addr add 2001:db8:9::1/64 dev eth0 nodad")
	w.client.run("ip -6 neigh replace " + vip6.String() + " lladdr " + sharedMAC.String() + " dev eth0 nud permanent")
	for i, d := range w.directors {
		d.run(fmt.Sprintf("ip -6 addr add 2001:db8:9::%d/64 dev eth0 nodad", i+2))
		d.run("ip -6 addr add " + vip6.String() + "/128 dev lo nodad")
	}
	w.beat(1)
	return w, cfg.Plan
}

// One flow of UDP that mixes datagrams of one packet and of six fragments has
// one director, in both families.
func TestDatagramSizes(t *testing.T) {
	w, plan := newDual(t, 3)
	for _, d := range w.directors {
		d.do(func() error {
			pc, err := net.ListenPacket("udp6", netip.AddrPortFrom(vip6, port).String())
			if err == nil {
				d.hearDatagrams(pc)
			}
			return err
		})
	}
	for _, c := range []struct{ from, to netip.Addr }{
		{netip.MustParseAddr("10.9.0.1"), vip}, {netip.MustParseAddr("2001:db8:9::1"), vip6},
	} {
		for p := range uint16(8) {
			from, to := netip.AddrPortFrom(c.from, 30000+p), netip.AddrPortFrom(c.to, port)
			var sent []uint32
			w.client.do(func() error {
				s, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
				if err != nil {
					return err
				}
				defer s.Close()
				for i := range 8 {
					w.next++
					b := make([]byte, 100+i%2*7900)
					binary.BigEndian.PutUint32(b, w.next)
					if _, err := s.Write(b); err != nil {
						return err
					}
					sent = append(sent, w.next)
				}
				return nil
			})
			b := plan.Bucket(plan.Default, from, to)
			for i, got := range w.arrived(sent, 5*time.Second) {
				for k, d := range w.directors {
					if want := map[bool]int{true: 1}[d.owns.Has(b)]; got[k] != want {
						t.Errorf("%v, datagram %d: %s got %d copies, want %d", from, i, d.name, got[k], want)
					}
				}
			}
		}
	}
}

// A router before a narrower link tells the virtual address that a packet was
// too big. The director that has the connection hears it, so the connection
// goes on: without that, none of the large packets would ever pass.
func TestPathMTU(t *testing.T) {
	const content = 300_000
	w, plan := newDual(t, 3)
	router, far := newHost(t, "router"), newHost(t, "far")
	router.plug(w.sw, "10.9.0.254/24")
	router.join(far, "eth1")
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		router.do(func() error { return os.WriteFile(file, []byte("1"), 0) })
	}
	router.run("ip link set eth1 mtu 1300")
	for _, command := range []string{
		"ip addr add 10.8.0.1/24 dev eth1", "ip -6 addr add 2001:db8:8::1/64 dev eth1 nodad",
		"ip -6 addr add 2001:db8:9::254/64 dev eth0 nodad",
		"ip neigh replace 10.9.0.100 lladdr " + sharedMAC.String() + " dev eth0 nud permanent",
		"ip -6 neigh replace " + vip6.String() + " lladdr " + sharedMAC.String() + " dev eth0 nud permanent",
	} {
		router.run(command)
	}
	for _, command := range []string{
		"ip addr add 10.8.0.2/24 dev eth0", "ip route add default via 10.8.0.1",
		"ip -6 addr add 2001:db8:8::2/64 dev eth0 nodad", "ip -6 route add default via 2001:db8:8::1",
	} {
		far.run(command)
	}
	for _, d := range w.directors {
		d.run("ip route add 10.8.0.0/24 via 10.9.0.254")
		d.run("ip -6 route add 2001:db8:8::/64 via 2001:db8:9::254")
		for _, a := range []netip.Addr{vip, vip6} {
			d.offer(netip.AddrPortFrom(a, 4300), make([]byte, content))
		}
	}
	used := map[string]bool{}
	for _, c := range []struct{ from, to netip.Addr }{
		{netip.MustParseAddr("10.8.0.2"), vip}, {netip.MustParseAddr("2001:db8:8::2"), vip6},
	} {
		for p := range uint16(6) {
			from, to := netip.AddrPortFrom(c.from, 31000+p), netip.AddrPortFrom(c.to, 4300)
			for _, d := range w.directors {
				if d.owns.Has(plan.Bucket(plan.Default, from, to)) {
					used[d.name] = true
				}
			}
			far.do(func() error {
				dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(from)}
				s, err := dialer.Dial("tcp", to.String())
				if err != nil {
					return err
				}
				defer s.Close()
				s.SetDeadline(time.Now().Add(20 * time.Second))
				if n, err := io.Copy(io.Discard, s); err != nil || n != content {
					return fmt.Errorf("%v: %d bytes: %w", from, n, err)
				}
				return nil
			})
		}
	}
	if len(used) < 2 {
		t.Errorf("only %v tried: choose other ports", used)
	}
}

// offer sends the same content to everybody who connects.
func (d *director) offer(at netip.AddrPort, content []byte) {
	d.t.Helper()
	var ln net.Listener
	d.do(func() (err error) {
		ln, err = net.Listen("tcp", at.String())
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				c.Write(content)
			})
		}
	})
	d.t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
}
