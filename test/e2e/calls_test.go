package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"saru/test/lab"
)

const (
	sipPort     = 5060
	callsOfEach = 6 // client
)

// Calls of SIP over UDP, each datagram scheduled by itself (ipvsadm --ops): all
// messages of a call reach one real server, from whatever port, while the
// director that has them loses its power, and then the next one. (IPVS keeps
// what two proxies say of one call apart: ip_vs_sip_ct_match compares the
// client's address too.)
func TestCallsKeepTheirServer(t *testing.T) {
	s := newSite(t, lab.Topology{
		Name: "calls", Directors: 3, RealServers: 3, Clients: 3,
		Services: []lab.Service{{Proto: "udp", Port: sipPort, Persistent: 600, Engine: "sip", OnePacket: true}},
	}, setup{modules: []string{"ip_vs_pe_sip"}, ready: divided(1)})
	c := &calls{site: s, seen: map[string]map[string]int{}}
	s.serveUDP(sipPort, c.answer)
	s.whole()
	for _, client := range s.lab.Clients {
		for i := range callsOfEach {
			c.all = append(c.all, &call{from: client, id: fmt.Sprintf("%d-%s@lab", i, client.Name)})
		}
	}
	c.say("INVITE", sipPort)
	for _, client := range s.lab.Clients {
		used := map[string]bool{}
		for _, call := range c.all {
			if call.from == client {
				used[call.server] = true
			}
		}
		if len(used) < 2 {
			t.Errorf("the calls of %s are not told apart: all went to %v", client.Name, slices.Collect(maps.Keys(used)))
		}
	}
	c.known()
	c.say("ACK", 0)
	for _, method := range []string{"UPDATE", "INFO"} {
		owner, e := s.owner(fmt.Sprintf("udp %v:%d %v:%d", s.lab.Clients[0].Addr, sipPort, s.lab.Topology.VIP, sipPort))
		if e.Sense != "src-addr" {
			t.Errorf("calls are explained as %+v", e)
		}
		s.powerCut(owner)
		c.say(method, 0)
		c.say(method, sipPort)
		c.known()
	}
	c.say("BYE", 0)
	c.mustBeOne()
}

// calls are what was said, and who heard it.
type calls struct {
	*site
	all []*call

	mu   sync.Mutex
	seen map[string]map[string]int // of a call, messages by real server
}

type call struct {
	from       *lab.Node // a proxy
	id, server string
}

// answer is a real server's: its name, and what it was told.
func (c *calls) answer(server string, message []byte) []byte {
	_, id, _ := strings.Cut(string(message), "Call-ID: ")
	id, _, _ = strings.Cut(id, "\r\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[id] == nil {
		c.seen[id] = map[string]int{}
	}
	c.seen[id][server]++
	line, _, _ := strings.Cut(string(message), "\r\n")
	return []byte(server + " " + line)
}

// known waits until each director has one template of each call.
func (c *calls) known() {
	c.t.Helper()
	c.site.known("the calls", len(c.all), func(c lab.Conn) bool {
		return c.Proto == "UDP" && c.Client.Port() == 0 && c.Virtual.Port() == sipPort
	})
}

// say says a message of each call, from a port, or from any if that is 0.
func (c *calls) say(method string, port uint16) {
	c.t.Helper()
	for _, call := range c.all {
		if err := c.message(call, method, port); err != nil {
			c.t.Fatalf("%s of %s: %v", method, call.id, err)
		}
	}
}

// message says one until it is answered, as SIP over UDP does.
func (c *calls) message(call *call, method string, port uint16) error {
	var conn *net.UDPConn
	if err := call.from.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(call.from.Addr, port)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.lab.Topology.VIP, sipPort)))
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	line := fmt.Sprintf("%s sip:b@lab SIP/2.0", method)
	text := fmt.Sprintf("%s\r\nVia: SIP/2.0/UDP %v\r\nFrom: <sip:a@lab>;tag=1\r\nTo: <sip:b@lab>\r\nCall-ID: %s\r\nCSeq: 1 %s\r\nContent-Length: 0\r\n\r\n",
		line, conn.LocalAddr(), call.id, method)
	var server string
	err := askUDP(conn, func(int) []byte { return []byte(text) }, func(answer []byte) bool {
		by, what, _ := strings.Cut(string(answer), " ")
		server = by
		return what == line // or it answers what was said before, from this port
	})
	if err != nil {
		return err
	}
	if call.server != "" && call.server != server {
		c.t.Errorf("%s of %s, by %s: %s answered, %s has the call", method, call.id, call.from.Name, server, call.server)
	}
	call.server = server
	return nil
}

// mustBeOne asserts that each call was heard by one real server.
func (c *calls) mustBeOne() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	by := map[string]int{}
	for id, servers := range c.seen {
		if len(servers) != 1 {
			c.t.Errorf("%s was heard by %v", id, servers)
		}
		for r, n := range servers {
			by[r] += n
		}
	}
	c.t.Logf("%d calls, messages by real server: %v", len(c.seen), by)
}
