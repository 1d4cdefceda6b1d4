package syncd

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/internal/testnet"
	"saru/ipvs"
)

// templateAt is the real server of the client's template for port 81 in
// director i's kernel, "" if there is none.
func (l *mixLAN) templateAt(i int) string {
	rows, _ := l.rows(i)
	for key, r := range rows {
		f := strings.Fields(key) // TCP, client, 0, virtual address, port
		if f[1] == "0A610003" && f[2] == "0000" && f[4] == "0051" {
			return strings.Fields(r.what)[0]
		}
	}
	return ""
}

// hears lets a director hear its peer, or not.
func (l *mixLAN) hears(i int, hears bool) {
	if hears {
		l.run(i, "nft", "delete table inet deaf")
		return
	}
	l.run(i, "nft", "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; };"+
		" add rule inet deaf in udp dport 8849 drop; add rule inet deaf in tcp dport 8849 drop")
}

// Two directors that did not hear each other chose different real servers for
// one client. When they do, both kernels have the later choice, once nothing
// uses the other any more, and the client stays there.
func TestTemplatesThatDisagreeInTwoKernels(t *testing.T) {
	l := newMixLAN(t, 1)
	const another = "10.97.0.33"
	l.run(nodeClient, "ip", "addr", "add", another+"/24", "dev", "eth0")
	l.via(0)
	for i := range 2 {
		l.start(i)
		l.synced(i)
	}
	for i := range 2 {
		l.hears(i, false)
	}
	visit := func(from string) {
		t.Helper()
		f := l.open("persistent", "tcp4", from, testVIP+":81")
		must(t, f.conn.(*net.TCPConn).SetLinger(0)) // the kernel forgets a reset one in 10 s
		f.conn.Close()
	}
	visit("")
	l.via(1)
	visit(another) // it is round robin: the next one gets the other real server
	visit("")
	first, second := l.templateAt(0), l.templateAt(1)
	if first == "" || second == "" || first == second {
		t.Fatalf("the directors chose %q and %q, so this test shows nothing", first, second)
	}
	for i := range 2 {
		testnet.Await(t, "the connections are forgotten", func() bool { return strings.Count(l.run(i, "ipvsadm", "-Lnc"), " CLOSE ") == 0 })
	}
	for i := range 2 {
		l.hears(i, true)
	}
	defer func() {
		t.Logf("first %s, second %s; now d1 has %s, %+v, d2 has %s, %+v", first, second, l.templateAt(0), l.status(0).Templates, l.templateAt(1), l.status(1).Templates)
	}()
	testnet.Await(t, "both kernels have the later choice", func() bool { return l.templateAt(0) == second && l.templateAt(1) == second })
	if st := l.status(0).Templates; st.Conflicts != 1 || st.Left != 0 {
		t.Errorf("d1: %+v", st)
	}
	l.via(0)
	l.open("persistent", "tcp4", "", testVIP+":81")
	rows, _ := l.rows(0)
	for key, r := range rows {
		if f := strings.Fields(key); f[1] == "0A610003" && f[4] == "0051" && strings.Fields(r.what)[0] != second {
			t.Errorf("d1 has %s: %+v; want all at %s", key, r, second)
		}
	}
	if got := l.templateAt(1); got != second {
		t.Errorf("then d2 has %s, want %s", got, second)
	}
}

// Templates that are found in the kernel's table have their service's timeout,
// where several services have one address, and with marks.
func TestFoundTemplatesHaveTheirTimeouts(t *testing.T) {
	l := newRealLAN(t)
	l.via(0)
	for _, i := range []int{0, nodeClient} {
		l.run(i, "ip", "-6", "addr", "add", fmt.Sprintf("fd97::%d/64", i+1), "dev", "eth0", "nodad")
	}
	l.run(0, "ip", "-6", "addr", "add", testVIP6+"/128", "dev", "lo", "nodad")
	l.run(nodeClient, "ip", "-6", "route", "add", testVIP6+"/128", "via", "fd97::1")
	l.run(0, "nft", "add table inet marks; add chain inet marks pre { type filter hook prerouting priority mangle; };"+
		" add rule inet marks pre tcp dport 85 meta nfproto ipv4 meta mark set 258; add rule inet marks pre tcp dport 85 meta nfproto ipv6 meta mark set 259")
	want := map[string]time.Duration{}
	add := func(template, server string, seconds time.Duration, service ...string) {
		l.run(0, slices.Concat([]string{"ipvsadm", "-A"}, service, []string{"-s", "rr", "-p", fmt.Sprint(int(seconds))})...)
		l.run(0, slices.Concat([]string{"ipvsadm", "-a"}, service, []string{"-r", server, "-g"})...)
		want[template] = seconds * time.Second
	}
	add("TCP "+testVIP+":81", "10.97.0.4", 310, "-t", testVIP+":81")
	add("TCP "+testVIP+":82", "10.97.0.4", 320, "-t", testVIP+":82")
	add("TCP "+testVIP+":0", "10.97.0.4", 330, "-t", testVIP+":21")
	add("TCP ["+testVIP6+"]:0", "fd97::4", 340, "-t", "["+testVIP6+"]:0")
	add("IP 0.0.1.2:0", "10.97.0.4", 350, "-f", "258")
	add("IP [0:103::]:0", "fd97::4", 360, "-f", "259", "-6")

	must(t, testnet.Within(l.Nodes[nodeClient], func() error {
		for _, at := range []string{testVIP + ":81", testVIP + ":82", testVIP + ":21", "[" + testVIP6 + "]:86", testVIP + ":85", "[" + testVIP6 + "]:85"} {
			// Nobody answers: the SYN makes the template.
			if c, err := net.DialTimeout("tcp", at, 100*time.Millisecond); err == nil {
				c.Close()
				return fmt.Errorf("somebody answered at %s", at)
			}
		}
		return nil
	}))
	got := map[string]time.Duration{}
	must(t, testnet.Within(l.Nodes[0], func() error {
		client, err := ipvs.Dial()
		if err != nil {
			return err
		}
		defer client.Close()
		k := &tapKernel{lister: lister{client}}
		return k.Entries(func() error { return nil }, func(e *Entry) {
			if e.Template {
				got[protocolName(e.Protocol)+" "+e.Virtual.String()] = e.Timeout
			}
		})
	}))
	if !maps.Equal(got, want) {
		t.Errorf("found %v\nwant  %v\n%s", got, want, l.run(0, "ipvsadm", "-Lnc"))
	}
}
