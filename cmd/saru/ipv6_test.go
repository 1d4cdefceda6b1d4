package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// edit changes every director's configuration before it starts.
func (l *lab) edit(old, text string) {
	l.Helper()
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		if !strings.Contains(string(b), old) {
			l.Fatalf("%q is not in the configuration", old)
		}
		l.must(os.WriteFile(n.conf, []byte(strings.Replace(string(b), old, text, 1)), 0o600))
	}
}

// run runs a command in a namespace.
func (l *lab) run(ns netns.NsHandle, command string) string {
	l.Helper()
	var out []byte
	l.must(in(ns, func() (err error) {
		args := strings.Fields(command)
		if out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return nil
	}))
	return string(out)
}

// answers returns who answers connections from a range of ports, and fails where
// nobody does.
func (l *lab) answers(ns netns.NsHandle, network, from, to string, first, last int) map[string]int {
	l.Helper()
	by := map[string]int{}
	l.must(in(ns, func() error {
		for port := first; port <= last; port++ {
			who, err := greeting(network, fmt.Sprintf("%s:%d", from, port), to)
			if err != nil {
				return err
			}
			by[who]++
		}
		return nil
	}))
	return by
}

// A client reaches an IPv6 address of the share through a switch that snoops,
// for longer than a membership lasts, through a director's death, and the
// director that explain names is the one that answers.
func TestIPv6(t *testing.T) {
	const vip, on = "2001:db8:9::100", "[2001:db8:9::100]:80"
	l := newLab(t, 2, "")
	l.edit(`["10.9.0.100"]`, `["10.9.0.100", "`+vip+`"]`)
	// Hundredths of a second: memberships end 2.5 s after the last report.
	l.run(l.sw, "ip link set br0 type bridge mcast_snooping 1 mcast_mld_version 2 mcast_query_interval 100 "+
		"mcast_query_response_interval 50 mcast_startup_query_interval 50 mcast_membership_interval 250 mcast_querier 1")
	for i, n := range l.nodes {
		l.run(n.ns, fmt.Sprintf("ip -6 addr add 2001:db8:9::%d/64 dev eth0 nodad", i+2))
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	l.run(client, "ip -6 addr add 2001:db8:9::1/64 dev eth0 nodad")
	l.start()
	servers := l.greet("tcp6", on)
	defer servers.close()

	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 30000, 30019); len(by) != 2 {
		t.Errorf("answered by %v, want both", by)
	}
	e, err := l.nodes[1].explain("tcp", "[2001:db8:9::1]:30100", on)
	l.must(err)
	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 30100, 30100); by[e.Owner] != 1 {
		t.Errorf("answered by %v, explained as %s", by, e.Owner)
	}
	if out := l.run(client, "curl -sg -m 5 http://"+on+"/"); out != "d1" && out != "d2" {
		t.Errorf("curl: %q", out)
	}
	if out := l.run(client, "ip -6 neigh show "+vip); !strings.Contains(out, "02:00:5e:00:01:01") {
		t.Errorf("the client's neighbour: %s", out)
	}

	time.Sleep(6 * time.Second) // two memberships and more
	mdb := l.run(l.sw, "bridge mdb show dev br0")
	for _, n := range l.nodes {
		if !strings.Contains(mdb, "port "+n.name+" grp ff02::1:ff00:100") {
			t.Errorf("%s is not in the group:\n%s", n.name, mdb)
		}
	}
	l.run(client, "ip -6 neigh flush dev eth0")
	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 30020, 30029); len(by) != 2 {
		t.Errorf("after a while answered by %v, want both", by)
	}
	if fdb := l.run(l.sw, "bridge fdb show br br0"); strings.Contains(fdb, "02:00:5e:00:01:01") {
		t.Errorf("the switch learned the shared MAC:\n%s", fdb)
	}

	d1, d2 := l.nodes[0], l.nodes[1]
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("taken over", l.shared(1))
	l.run(client, "ip -6 neigh flush dev eth0")
	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 30030, 30049); by["d2"] != 20 {
		t.Errorf("after d1's death answered by %v", by)
	}
	d1.start()
	l.until("back", l.shared(2))
	for _, n := range []*node{d1, d2} {
		n.signal(syscall.SIGTERM)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		if out := l.run(n.ns, "ip -6 addr show dev lo"); strings.Contains(out, vip) {
			t.Errorf("%s left:\n%s", n.name, out)
		}
		l.clean(n)
	}
}

// Networks are served too, for a client that has a route to them.
func TestNetworks(t *testing.T) {
	l := newLab(t, 2, "")
	l.edit(`["10.9.0.100"]`, `["10.9.0.100", "2001:db8:9::100", "10.9.7.0/24", "2001:db8:7::/64"]`)
	for i, n := range l.nodes {
		l.run(n.ns, fmt.Sprintf("ip -6 addr add 2001:db8:9::%d/64 dev eth0 nodad", i+2))
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	l.run(client, "ip -6 addr add 2001:db8:9::1/64 dev eth0 nodad")
	l.run(client, "ip route add 10.9.7.0/24 via 10.9.0.100")
	l.run(client, "ip -6 route add 2001:db8:7::/64 via 2001:db8:9::100")
	l.start()
	servers := l.greet("tcp", ":80")
	defer servers.close()
	for _, end := range [][3]string{
		{"tcp4", "10.9.0.1", "10.9.7.33:80"}, {"tcp6", "[2001:db8:9::1]", "[2001:db8:7::abcd]:80"},
	} {
		if by := l.answers(client, end[0], end[1], end[2], 30000, 30019); len(by) != 2 {
			t.Errorf("%s answered by %v, want both", end[2], by)
		}
	}
	for _, n := range l.nodes {
		n.signal(syscall.SIGTERM)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		if out := l.run(n.ns, "ip route show table all"); strings.Contains(out, "proto 201") {
			t.Errorf("%s left:\n%s", n.name, out)
		}
	}
}
