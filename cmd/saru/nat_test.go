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

// LVS-NAT through three directors: every request is answered, whichever
// director has its bucket and whichever of them dies; real servers reach the
// outside by themselves; nothing leaves with a real server's address.
func TestNAT(t *testing.T) {
	if !kernel.HasIPVS() {
		t.Skip(kernel.ErrNoIPVS)
	}
	const vip = "10.9.0.100:80"
	l := newLab(t, 3, "")
	l.edit(`target = "local"`, "target = \"ipvs\"\n[share.inside]\ninterface = \"eth1\"\naddress = \"192.168.6.1\"\nnetworks = [\"192.168.6.0/24\"]")
	l.bridge("br1")
	for i, n := range l.nodes {
		l.plugInside(n.ns, "eth1", n.name+"-in", fmt.Sprintf("192.168.6.%d", i+2))
		l.run(n.ns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0")
		l.run(n.ns, "ipvsadm -A -t "+vip+" -s rr")
		for server := 21; server <= 22; server++ {
			l.run(n.ns, fmt.Sprintf("ipvsadm -a -t %s -r 192.168.6.%d:8080 -m", vip, server))
		}
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	var servers []netns.NsHandle
	for i := 21; i <= 22; i++ {
		ns := l.newNS()
		l.plugInside(ns, "eth0", fmt.Sprintf("r%d", i), fmt.Sprintf("192.168.6.%d", i))
		l.run(ns, "ip route add default via 192.168.6.1")
		l.serveHTTP(ns, ":8080", fmt.Sprintf("r%d", i))
		servers = append(servers, ns)
	}
	l.serveHTTP(client, "10.9.0.1:443", "outside")
	l.run(client, "nft add table netdev seen")
	l.run(client, `nft add chain netdev seen in { type filter hook ingress device "eth0" priority 0 ; }`)
	l.run(client, "nft add rule netdev seen in ip saddr 192.168.6.0/24 counter")
	l.start()

	ask := func(what string, first int) {
		t.Helper()
		by := map[string]int{}
		l.must(in(client, func() error {
			for port := first; port < first+30; port++ {
				who, err := greeting("tcp4", fmt.Sprintf("10.9.0.1:%d", port), vip)
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
			if out := l.run(ns, "curl -s -m 10 http://10.9.0.1:443/"); !strings.HasPrefix(out, "outside to 10.9.0.100:") {
				t.Errorf("%s: a real server asked outside and got %q", what, out)
			}
		}
	}
	ask("three directors", 30000)
	outward("three directors")
	accepted := map[string]uint64{}
	for _, n := range l.nodes {
		st, err := n.status()
		l.must(err)
		if accepted[n.name] = st.Filter.Accepted; st.Filter.Accepted == 0 {
			t.Errorf("%s took no part", n.name)
		}
	}
	d1 := l.nodes[0]
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("two share", l.shared(2))
	ask("after a director's death", 31000)
	outward("after a director's death")
	for _, n := range l.nodes[1:] {
		out, err := n.saru("status")
		l.must(err)
		t.Log("\n" + out)
		n.signal(syscall.SIGTERM)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		l.clean(n)
		if out := l.run(n.ns, "ip addr show dev lo"); strings.Contains(out, "192.168.6.1/") {
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
		ln, err = net.Listen("tcp4", addr)
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
