package main

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// What 'saru check' says of flooding: nothing while nobody sends, yes when
// another check or a director is heard, no when one serves and is not heard.
func TestCheckTriesFlooding(t *testing.T) {
	l := newLab(t, 2, "")
	d1, d2 := l.nodes[0], l.nodes[1]
	says := func(n *node, want string) {
		t.Helper()
		out, err := n.saru("check")
		l.must(err)
		if !strings.Contains(out, want) {
			t.Errorf("check on %s does not say %q:\n%s", n.name, want, out)
		}
	}
	says(d1, "flooding       not known: nobody sends frames to 02:00:5e:00:01:01")
	var both errgroup.Group
	outs := make([]string, 2)
	for i, n := range l.nodes {
		both.Go(func() (err error) {
			outs[i], err = n.saru("check")
			return err
		})
	}
	l.must(both.Wait())
	if !strings.Contains(outs[0], `come to eth0, from a check on "d2"`) && !strings.Contains(outs[1], `come to eth0, from a check on "d1"`) {
		t.Errorf("two checks at once said\n%s\nand\n%s", outs[0], outs[1])
	}
	d1.start()
	l.until("one serves", l.shared(1))
	says(d2, "flooding       yes: frames to 02:00:5e:00:01:01, which no switch knows, come to eth0, from d1")
	l.must(in(d1.ns, func() error { return sendFrom(sharedMAC) }))
	says(d2, "flooding       NO: somebody serves with the shared MAC")
	if st, err := d1.status(); err != nil || len(st.Foreigners) > 0 || len(st.Strangers) > 0 {
		t.Errorf("a check looks like a stranger: %+v, %v", st, err)
	}
}

// A switch that has pruned the group of an IPv6 address passes no solicitations
// to the master: the others say so.
func TestPrunedGroupIsNamed(t *testing.T) {
	const vip = "2001:db8:9::100"
	l := newLab(t, 2, "")
	l.edit(`["10.9.0.100"]`, `["10.9.0.100", "`+vip+`"]`)
	l.run(l.sw, "ip link set br0 type bridge mcast_snooping 1 mcast_mld_version 2 mcast_query_interval 100 "+
		"mcast_query_response_interval 50 mcast_startup_query_interval 50 mcast_membership_interval 250 mcast_querier 1")
	l.start()
	st, err := l.nodes[0].status()
	l.must(err)
	master, other := l.nodes[0], l.nodes[1]
	if st.Master == other.name {
		master, other = other, master
	}
	says := func() string {
		st, err := other.status()
		l.must(err)
		return strings.Join(st.LAN, "; ")
	}
	time.Sleep(6 * time.Second) // a question or more
	if got := says(); got != "" {
		t.Errorf("on a LAN in order: %s", got)
	}
	l.run(master.ns, "nft add table ip6 mute")
	l.run(master.ns, "nft add chain ip6 mute out { type filter hook output priority 0 ; }")
	l.run(master.ns, "nft add rule ip6 mute out icmpv6 type mld2-listener-report drop")
	l.eventually("the pruned group is named", func() string {
		if got := says(); !strings.Contains(got, "nobody answers solicitations of "+vip) || !strings.Contains(got, "snoop MLD") {
			return "status says " + got
		}
		return ""
	})
	l.run(master.ns, "nft delete table ip6 mute")
	l.eventually("all is well", says)
}

// A switch that polices the frames that it floods to one director: that one
// gets fewer bytes than the others, and says so.
func TestStormControlIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes four windows of ten seconds")
	}
	l := newLab(t, 2, "")
	l.start()
	stop := l.traffic()
	defer stop()
	l.run(l.sw, "nft add table netdev storm")
	l.run(l.sw, `nft add chain netdev storm out { type filter hook egress device "d2" priority 0 ; }`)
	l.run(l.sw, "nft add rule netdev storm out udp dport 9000 limit rate over 1000/second burst 10 packets drop")
	l.eventually("the policed port is named", func() string {
		st, err := l.nodes[1].status()
		l.must(err)
		if got := strings.Join(st.LAN, "; "); !strings.Contains(got, "of the bytes to the shared MAC that d1 gets") {
			return "status says " + got
		}
		return ""
	})
	st, err := l.nodes[0].status()
	if err != nil || len(st.LAN) > 0 {
		t.Errorf("d1, which gets all, says %v (%v)", st.LAN, err)
	}
}
