package nft_test

import (
	"testing"
	"time"
)

// Frames for the VIP to a director's own MAC reached nobody else: they are
// served by it, counted, and their sender is named.
func TestOwnMAC(t *testing.T) {
	w := newNetwork(t, 2, config(time.Minute))
	d := w.directors[1]
	mac := d.mac("eth0")
	w.client.run("ip neigh replace 10.9.0.100 lladdr " + mac + " dev eth0 nud permanent")
	ps := ports(20)
	for i, got := range w.arrived(w.sendMany(ps, 64), 5*time.Second) {
		if got[0] != 0 || got[1] != 1 {
			t.Errorf("port %d: %v", ps[i], got)
		}
	}
	s, err := d.filter.Stats()
	if err != nil || s.Own < 20 || s.OwnSender.String() != w.client.mac("eth0") {
		t.Errorf("%+v, %v; sender should be %s", s, err, w.client.mac("eth0"))
	}
}

// A broadcast frame for the VIP reaches every director; none may take it.
func TestBroadcastFrame(t *testing.T) {
	w := newNetwork(t, 2, config(time.Minute))
	w.beat(1)
	w.client.run("ip neigh replace 10.9.0.100 lladdr ff:ff:ff:ff:ff:ff dev eth0 nud permanent")
	check := func(when string) {
		t.Helper()
		for _, got := range w.arrived(w.sendMany(ports(8), 64), 200*time.Millisecond) {
			if got[0]+got[1] != 0 {
				t.Errorf("%s: %v", when, got)
			}
		}
	}
	check("whole")
	for _, d := range w.directors {
		d.run("nft delete chain inet saru ingress")
	}
	check("without the ingress chain")
}

// A frame for the VIP to somebody else's MAC, which the switch floods, is
// nobody's, whole or in fragments.
func TestForeignMAC(t *testing.T) {
	w := newNetwork(t, 2, config(time.Minute))
	w.beat(1)
	w.client.run("ip neigh replace 10.9.0.100 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
	for _, size := range []int{64, 8000} {
		for _, got := range w.arrived(w.sendMany(ports(8), size), 200*time.Millisecond) {
			if got[0]+got[1] != 0 {
				t.Errorf("%d bytes: %v", size, got)
			}
		}
	}
	for _, d := range w.directors {
		if s, err := d.filter.Stats(); err != nil || s.Accepted != 0 || s.Fragments != 0 || s.Own != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	}
}
