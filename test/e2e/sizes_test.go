package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"saru/test/lab"
)

const (
	sizesPort  = 8010
	sizesFlows = 6 // of each family
)

// Flows of UDP that mix datagrams of one packet and of six fragments, in both
// families, come to one real server each, no datagram twice, and every director
// has one entry of each: while a director is drained, while it returns, and
// when one loses its power.
func TestMixedDatagramsKeepTheirServer(t *testing.T) {
	s := newSite(t, lab.Topology{
		Name: "sizes", Directors: 3, RealServers: 2, Clients: 1, IPv6: true,
		Services: []lab.Service{{Proto: "udp", Port: sizesPort}},
	}, setup{})
	z := &sizes{site: s, got: map[datagram][]string{}}
	s.serveUDP(sizesPort, z.answer)
	s.whole()
	for i := range 2 * sizesFlows {
		to := s.lab.Topology.VIP
		if i >= sizesFlows {
			to = lab.VIP6
		}
		var c *net.UDPConn
		if err := s.lab.Clients[0].Do(func() (err error) {
			c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, sizesPort)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		z.flows = append(z.flows, c)
	}
	z.exchange("three directors")
	d := z.owner(0)
	s.drain(d)
	z.exchange("after the drain of " + d.Name)
	s.undrain(d)
	z.exchange("with three again")
	for range 2 {
		d = z.owner(sizesFlows)
		s.powerCut(d)
		z.exchange("after the power cut of " + d.Name)
	}
	z.mustBeOne()
}

type sizes struct {
	*site
	flows []*net.UDPConn

	mu   sync.Mutex
	got  map[datagram][]string // the real servers that it came to
	sent uint32
}

// A datagram begins with its flow, its number, and which try it is.
type datagram struct{ flow, number, try uint32 }

const datagramHead = 12

func (z *sizes) owner(flow int) *lab.Director {
	z.t.Helper()
	c := z.flows[flow]
	d, _ := z.site.owner(fmt.Sprintf("udp %v %v", c.LocalAddr(), c.RemoteAddr()))
	return d
}

// answer is a real server's: the head of what it got.
func (z *sizes) answer(server string, b []byte) []byte {
	if len(b) < datagramHead {
		return nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	d := datagram{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}
	z.got[d] = append(z.got[d], server)
	return b[:datagramHead]
}

// exchange sends datagrams of both sizes on each flow, each again until it is
// answered, and waits until all directors know the flows.
func (z *sizes) exchange(when string) {
	z.t.Helper()
	for range 6 {
		z.sent++
		for i, c := range z.flows {
			size := 100
			if (z.sent+uint32(i))%2 == 0 {
				size = 8000
			}
			if err := z.send(uint32(i), c, size); err != nil {
				z.t.Fatalf("%s: %v, %d bytes: %v", when, c.LocalAddr(), size, err)
			}
		}
	}
	z.known("all flows once, "+when, len(z.flows), func(c lab.Conn) bool { return c.Proto == "UDP" && c.Virtual.Port() == sizesPort })
}

func (z *sizes) send(flow uint32, c *net.UDPConn, size int) error {
	b := make([]byte, size)
	return askUDP(c, func(try int) []byte {
		binary.BigEndian.PutUint32(b, flow)
		binary.BigEndian.PutUint32(b[4:], z.sent)
		binary.BigEndian.PutUint32(b[8:], uint32(try))
		return b
	}, func(answer []byte) bool {
		return len(answer) == datagramHead && binary.BigEndian.Uint32(answer[4:]) == z.sent
	})
}

// mustBeOne asserts that each flow came to one real server, and no datagram
// twice.
func (z *sizes) mustBeOne() {
	z.t.Helper()
	z.mu.Lock()
	defer z.mu.Unlock()
	servers := make([]map[string]int, len(z.flows))
	for d, by := range z.got {
		if servers[d.flow] == nil {
			servers[d.flow] = map[string]int{}
		}
		for _, r := range by {
			servers[d.flow][r]++
		}
		if len(by) != 1 {
			z.t.Errorf("flow %d: datagram %d, try %d, came to %v", d.flow, d.number, d.try, by)
		}
	}
	used := map[string]bool{}
	for i, by := range servers {
		for r := range by {
			used[r] = true
		}
		if len(by) != 1 {
			z.t.Errorf("flow %d, of %v, came to %v", i, z.flows[i].RemoteAddr(), by)
		}
	}
	z.t.Logf("%d flows, %d datagrams of 100 bytes and of 8 kB each, by %v", len(z.flows), z.sent, slices.Sorted(maps.Keys(used)))
}
