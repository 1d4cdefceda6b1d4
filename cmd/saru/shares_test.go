package main

import (
	"net/netip"
	"syscall"
	"testing"

	"saru/internal/control"
	"saru/internal/ownership"
)

// Two shares of one configuration, on one LAN: each is divided among both
// directors, status tells of both, and what is asked of one goes to the right
// one.
func TestTwoShares(t *testing.T) {
	for _, mode := range []string{"flood", "forward"} {
		t.Run(mode, func(t *testing.T) { twoShares(t, mode) })
	}
}

func twoShares(t *testing.T, mode string) {
	l := newLab(t, 2, "")
	l.edit("[share]", "[share]\nmode = \""+mode+"\"")
	l.edit("[share]", "[[share]]\nmode = \""+mode+"\"\nid = 7\naddresses = [\"10.9.0.107\"]\ninterface = \"eth0\"\ntarget = \"local\"\nsense = \"src-addr,src-port\"\n[[share]]")
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	l.start()
	all := func(want int) {
		t.Helper()
		l.eventually("both shares are whole", func() string {
			sum := map[int]int{}
			for _, n := range l.nodes {
				if n.cmd == nil {
					continue
				}
				st, err := n.status()
				if err != nil {
					return err.Error()
				}
				for _, s := range st.Shares {
					if s.State != "ready" || s.Share.Buckets == 0 {
						return n.name + " is " + s.State
					}
					sum[s.Share.ID] += s.Share.Buckets
				}
			}
			if len(sum) != 2 || sum[1] != want || sum[7] != want {
				return "not whole"
			}
			return ""
		})
	}
	all(256)
	servers := l.greet("tcp4", ":80")
	defer servers.close()
	for _, vip := range []string{"10.9.0.100:80", "10.9.0.107:80"} {
		if by := l.answers(client, "tcp4", "10.9.0.1", vip, 30000, 30029); len(by) != 2 {
			t.Errorf("%s answered by %v, want both", vip, by)
		}
	}
	e, err := l.nodes[1].explain("tcp", "10.9.0.1:31000", "10.9.0.107:80")
	l.must(err)
	if by := l.answers(client, "tcp4", "10.9.0.1", "10.9.0.107:80", 31000, 31000); by[e.Owner] != 1 || e.Sense != "src-addr,src-port" {
		t.Errorf("answered by %v, explained as %+v", by, e)
	}
	d1, d2 := l.nodes[0], l.nodes[1]
	var told ownership.Told
	l.must(control.NewClient(l.dir+"/"+d1.name+".sock").Get(t.Context(), "/ownership", &told))
	if len(told.Others) != 1 || !told.Others[0].Plan.IsVIP(netip.MustParseAddr("10.9.0.107")) {
		t.Errorf("syncd is told of %d shares beside the first: %+v", len(told.Others), told)
	}
	if out, err := d1.saru("drain"); err != nil {
		t.Errorf("drain: %v: %s", err, out)
	}
	st, err := d1.status()
	l.must(err)
	for _, s := range st.Shares {
		if s.Share.Buckets != 0 {
			t.Errorf("%d buckets of share %d are left after a drain", s.Share.Buckets, s.Share.ID)
		}
	}
	out, err := d2.saru("status")
	l.must(err)
	t.Log("\n" + out)
	if st, err := d2.status(); err != nil || len(st.Foreigners) > 0 {
		t.Errorf("the shares take each other for foreigners: %+v, %v", st, err)
	}
	for _, n := range l.nodes {
		n.signal(syscall.SIGTERM)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		l.clean(n)
		if left := l.run(n.ns, "nft list tables") + l.run(n.ns, "tc filter show dev eth0 ingress"); left != "" {
			t.Errorf("%s left %s", n.name, left)
		}
	}
}
