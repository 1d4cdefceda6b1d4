package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	kernel "saru/test/lab"
)

// plugInside connects ns with the bridge of the real servers, as device.
func (l *lab) plugInside(ns netns.NsHandle, device, port, addr string) {
	l.Helper()
	l.must(in(l.sw, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: device, PeerNamespace: netlink.NsFd(ns)}
		return netlink.LinkAdd(veth)
	}))
	l.run(l.sw, "ip link set "+port+" master br1 up")
	l.run(ns, "ip addr add "+addr+"/24 dev "+device)
	l.run(ns, "ip link set "+device+" up")
}

// A natSite is the addresses of a network with LVS-NAT.
type natSite struct {
	network               string // of package net
	vip, client, gateway  string
	inside                string // the real servers' network
	director, server      string // %d is the host's number, within inside
	forwarding            string
	bracket, family, ours string // around addresses before ports; of ip; nft's name of the family
}

var natSites = map[string]natSite{
	"IPv4": {
		"tcp4", "10.9.0.100", "10.9.0.1", "192.168.6.1", "192.168.6.0/24", "192.168.6.%d/24", "192.168.6.%d",
		"net.ipv4.ip_forward=1", "%s", "-4", "ip",
	},
	"IPv6": {
		"tcp6", "2001:db8:9::100", "2001:db8:9::1", "fd00:6::1", "fd00:6::/64", "fd00:6::%d/64", "fd00:6::%d",
		"net.ipv6.conf.all.forwarding=1", "[%s]", "-6", "ip6",
	},
}

func (s *natSite) at(addr string, port int) string { return fmt.Sprintf(s.bracket+":%d", addr, port) }

// add gives an address to an interface.
func (s *natSite) add(addr, device string) string {
	nodad := ""
	if s.family == "-6" {
		nodad = " nodad"
	}
	return "ip " + s.family + " addr replace " + addr + " dev " + device + nodad
}

// LVS-NAT through three directors: every request is answered, whichever
// director has its bucket and whichever of them dies; real servers reach the
// outside by themselves; nothing leaves with a real server's address; who loses
// the inside LAN gives its share away.
func TestNAT(t *testing.T) {
	if !kernel.HasIPVS() {
		t.Skip(kernel.ErrNoIPVS)
	}
	for name, site := range natSites {
		t.Run(name, func(t *testing.T) { translated(t, &site) })
	}
}

func translated(t *testing.T, s *natSite) {
	vip := s.at(s.vip, 80)
	l := newLab(t, 3, "")
	l.edit(`["10.9.0.100"]`, fmt.Sprintf("[%q]", s.vip))
	l.edit(`target = "local"`, fmt.Sprintf("target = \"ipvs\"\n[share.inside]\ninterface = \"eth1\"\naddress = %q\nnetworks = [%q]", s.gateway, s.inside))
	l.bridge("br1")
	for i, n := range l.nodes {
		l.plugInside(n.ns, "eth1", n.name+"-in", "192.168.6."+fmt.Sprint(i+2))
		l.run(n.ns, s.add(fmt.Sprintf(s.director, i+2), "eth1"))
		if s.family == "-6" {
			l.run(n.ns, s.add(fmt.Sprintf("2001:db8:9::%d/64", i+2), "eth0"))
		}
		l.run(n.ns, "sysctl -qw "+s.forwarding)
		l.run(n.ns, "ipvsadm -A -t "+vip+" -s rr")
		for server := 21; server <= 22; server++ {
			l.run(n.ns, fmt.Sprintf("ipvsadm -a -t %s -r %s -m", vip, s.at(fmt.Sprintf(s.server, server), 8080)))
		}
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	if s.family == "-6" {
		l.run(client, s.add(s.client+"/64", "eth0"))
	}
	var servers []netns.NsHandle
	for i := 21; i <= 22; i++ {
		ns := l.newNS()
		l.plugInside(ns, "eth0", fmt.Sprintf("r%d", i), fmt.Sprintf("192.168.6.%d", i))
		l.run(ns, s.add(fmt.Sprintf(s.director, i), "eth0"))
		l.run(ns, "ip "+s.family+" route add default via "+s.gateway)
		l.serveHTTP(ns, ":8080", fmt.Sprintf("r%d", i))
		servers = append(servers, ns)
	}
	l.serveHTTP(client, s.at(s.client, 443), "outside")
	l.run(client, "nft add table netdev seen")
	l.run(client, `nft add chain netdev seen in { type filter hook ingress device "eth0" priority 0 ; }`)
	l.run(client, "nft add rule netdev seen in "+s.ours+" saddr "+s.inside+" counter")
	l.start()

	ask := func(what string, first int) {
		t.Helper()
		by := map[string]int{}
		l.must(in(client, func() error {
			for port := first; port < first+30; port++ {
				who, err := greeting(s.network, s.at(s.client, port), vip)
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				by[who]++
			}
			return nil
		}))
		if by["r21"] == 0 || by["r22"] == 0 || by["r21"]+by["r22"] != 30 {
			t.Errorf("%s: answered by %v", what, by)
		}
	}
	outward := func(what string) {
		t.Helper()
		for _, ns := range servers {
			if out := l.run(ns, "curl -sg -m 10 http://"+s.at(s.client, 443)+"/"); !strings.HasPrefix(out, "outside to "+fmt.Sprintf(s.bracket, s.vip)+":") {
				t.Errorf("%s: a real server asked outside and got %q", what, out)
			}
		}
	}
	ask("three directors", 30000)
	outward("three directors")
	for _, n := range l.nodes {
		if st, err := n.status(); err != nil || st.Filter.Accepted == 0 {
			t.Errorf("%s took no part: %v", n.name, err)
		}
	}
	d1, d2 := l.nodes[0], l.nodes[1]
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("two share", l.shared(2))
	ask("after a director's death", 31000)
	outward("after a director's death")
	l.run(l.sw, "ip link set "+d2.name+"-in down")
	l.until("who has both LANs has all", func(open map[string]int) bool { return open["d3"] == 256 && open["d2"] == 0 })
	ask("with one director's inside link cut", 32000)
	l.run(l.sw, "ip link set "+d2.name+"-in up")
	l.until("two share again", l.shared(2))
	for _, n := range l.nodes[1:] {
		out, err := n.saru("status")
		l.must(err)
		t.Log("\n" + out)
		n.signal(syscall.SIGTERM)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		l.clean(n)
		if out := l.run(n.ns, "ip addr show dev lo"); strings.Contains(out, s.gateway+"/") {
			t.Errorf("%s left:\n%s", n.name, out)
		}
	}
	if seen := l.run(client, "nft list chain netdev seen in"); !strings.Contains(seen, "counter packets 0 ") {
		t.Errorf("a real server's address left:\n%s", seen)
	}
}

// serveHTTP answers requests with a name, and says to whom.
func (l *lab) serveHTTP(ns netns.NsHandle, addr, name string) {
	l.Helper()
	var ln net.Listener
	l.must(in(ns, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	}))
	handler := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		if name == "outside" {
			fmt.Fprintf(w, "%s to %s", name, r.RemoteAddr)
			return
		}
		fmt.Fprint(w, name)
	}
	srv := &http.Server{Handler: http.HandlerFunc(handler), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // ends when it is closed
	}()
	l.Cleanup(func() {
		srv.Close()
		<-done
	})
}
