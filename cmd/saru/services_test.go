package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	kernel "saru/test/lab"
)

// A service that becomes persistent in IPVS is divided by the client's address
// once it is so on all directors, and not before: then one client meets one
// director, the one that explain names.
func TestPersistentServices(t *testing.T) {
	if !kernel.HasIPVS() {
		t.Skip(kernel.ErrNoIPVS)
	}
	const vip = "10.9.0.100:80"
	l := newLab(t, 3, "")
	l.edit(`target = "local"`, `target = "ipvs"`)
	for _, n := range l.nodes {
		// A real server at an own address: the director answers by itself.
		l.run(n.ns, "ipvsadm -A -t "+vip+" -s rr")
		l.run(n.ns, fmt.Sprintf("ipvsadm -a -t %s -r %s:80 -g", vip, n.addr))
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	l.start()
	servers := l.greet("tcp4", vip)
	defer servers.close()
	l.settled()
	if by := l.answers(client, "tcp4", "10.9.0.1", vip, 30000, 30029); len(by) != 3 {
		t.Errorf("answered by %v, want all", by)
	}

	persist := func(n *node) { l.run(n.ns, "ipvsadm -E -t "+vip+" -s rr -p 300 -M 255.255.255.0") }
	d1 := l.nodes[0]
	persist(d1)
	l.eventually("the difference is named", func() string {
		st, err := d1.status()
		l.must(err)
		if !strings.Contains(st.Share.ServicesWhy, "d2, d3") || len(st.Share.Services) > 0 || st.State != "ready" {
			return fmt.Sprintf("%s, %+v", st.State, st.Share)
		}
		return ""
	})

	persist(l.nodes[1])
	persist(l.nodes[2])
	l.eventually("all divide anew", func() string {
		for _, n := range l.nodes {
			if st, err := n.status(); err != nil || len(st.Share.Services) != 1 || st.Share.ServicesWhy != "" {
				return fmt.Sprintf("%s: %+v, %v", n.name, st, err)
			}
		}
		return ""
	})
	l.until("all share again", l.shared(3))
	l.settled()
	e, err := d1.explain("tcp", "10.9.0.1:31000", vip)
	l.must(err)
	if e.Service != "tcp "+vip || e.Sense != "src-addr/24" || !strings.Contains(e.Why, "persistent") {
		t.Errorf("explained as %+v", e)
	}
	if by := l.answers(client, "tcp4", "10.9.0.1", vip, 31000, 31029); by[e.Owner] != 30 {
		t.Errorf("answered by %v, want %s only", by, e.Owner)
	}
	out, err := d1.saru("status")
	l.must(err)
	t.Log("\n" + out)
	for _, n := range l.nodes {
		n.signal(15)
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d", n.name, code)
		}
		l.clean(n)
	}
}

// settled waits until no director meets connections that IPVS does not know
// with silence: those of its own, as a real server, pass IPVS and look like it.
func (l *lab) settled() {
	l.Helper()
	l.eventually("settled", func() string {
		for _, n := range l.nodes {
			if st, err := n.status(); err != nil || st.Filter.Settling > 0 {
				return fmt.Sprintf("%s: %+v, %v", n.name, st, err)
			}
		}
		return ""
	})
}

// eventually waits until f has nothing to complain of.
func (l *lab) eventually(what string, f func() (complaint string)) {
	l.Helper()
	complaint := ""
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if complaint = f(); complaint == "" {
			return
		}
	}
	l.Fatalf("%s: not within a minute: %s", what, complaint)
}
