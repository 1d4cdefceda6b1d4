package peer

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

// runSession runs a session until the test ends.
func runSession(t *testing.T, s *Session) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func driftOf(t *testing.T, s *Session) []string {
	t.Helper()
	peers := s.Peers()
	if len(peers) != 1 {
		t.Fatalf("%d peers", len(peers))
	}
	return peers[0].Drift
}

func TestServicesThatDifferAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		kr := keys(t, keyA)
		a, _ := session(t, kr, "d1", network.Node(1))
		b, _ := session(t, kr, "d2", network.Node(2))
		web := []ServiceItem{{"10.9.0.100:80/tcp", "wlc"}, {"10.9.0.100:80/tcp to 10.9.0.21:80", "weight 1, gate"}}
		a.SetServices(web)
		b.SetServices([]ServiceItem{web[1], web[0]})
		runSession(t, a)
		runSession(t, b)
		time.Sleep(time.Minute)
		if d := append(driftOf(t, a), driftOf(t, b)...); len(d) > 0 {
			t.Errorf("equal services are said to differ: %q", d)
		}
		// A health check is some seconds ahead: that is no difference.
		web[1].Value = "weight 0, gate"
		a.SetServices(web)
		time.Sleep(5 * time.Second)
		b.SetServices(web)
		for range 60 {
			time.Sleep(time.Second)
			if d := append(driftOf(t, a), driftOf(t, b)...); len(d) > 0 {
				t.Fatalf("a difference of 5 s is told: %q", d)
			}
		}
		web[1].Value = "weight 5, gate"
		b.SetServices(append(web, ServiceItem{"fwmark 5", "rr"}))
		time.Sleep(20 * time.Second)
		if got, want := driftOf(t, a), []string{
			"10.9.0.100:80/tcp to 10.9.0.21:80: weight 0, gate here, weight 5, gate on d2", "fwmark 5: only on d2",
		}; !reflect.DeepEqual(got, want) {
			t.Errorf("d1 says %q, want %q", got, want)
		}
		if got := driftOf(t, b); len(got) != 2 || got[1] != "fwmark 5: only here" {
			t.Errorf("d2 says %q", got)
		}
		a.SetServices(append(web, ServiceItem{"fwmark 5", "rr"}))
		time.Sleep(time.Second)
		if d := append(driftOf(t, a), driftOf(t, b)...); len(d) > 0 {
			t.Errorf("equal again, and said to differ: %q", d)
		}
	})
}

// However many services a peer has, and whatever they are called, what is
// kept and shown is bounded.
func TestManyServicesThatDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(2)
		kr := keys(t, keyA)
		a, _ := session(t, kr, "d1", network.Node(1))
		b, _ := session(t, kr, "d2", network.Node(2))
		var many []ServiceItem
		for i := range 2 * maxServiceItems {
			many = append(many, ServiceItem{fmt.Sprintf("service %05d \x1b[2J", i), strings.Repeat("x", 300)})
		}
		a.SetServices([]ServiceItem{{"one", "rr"}})
		b.SetServices(many)
		runSession(t, a)
		runSession(t, b)
		time.Sleep(30 * time.Second)
		d := driftOf(t, a)
		if len(d) != maxDifferences+1 || d[maxDifferences] != fmt.Sprintf("and %d more", maxServiceItems+1-maxDifferences) {
			t.Fatalf("%d lines, the last %q", len(d), d[len(d)-1])
		}
		for _, line := range d {
			if strings.ContainsRune(line, '\x1b') {
				t.Fatalf("%q goes to a terminal", line)
			}
		}
	})
}

func FuzzServices(f *testing.F) {
	f.Add(appendItem(appendItem(nil, "10.9.0.100:80/tcp", "wlc"), "fwmark 5", ""), uint64(7))
	f.Add([]byte{3, 'a'}, uint64(0))
	kr, err := seal.ParseKeyring([]byte(keyA))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, list []byte, digest uint64) {
		items, err := parseItems(&cursor{b: list}, nil)
		if err == nil {
			var again []byte
			for _, it := range items {
				again = appendItem(again, it.Name, it.Value)
			}
			if string(again) != string(list) {
				t.Fatalf("%x came back as %x", list, again)
			}
			l := newServiceList(items)
			for _, line := range differences(l.items, nil, "d2") {
				for _, c := range line {
					if c < ' ' || c > '~' {
						t.Fatalf("%q goes to a terminal", line)
					}
				}
			}
		}
		s, _ := session(t, kr, "d1", peertest.New(1).Node(1))
		s.onServices(conntable.NodeIDOf("d2"), seal.Boot{}, &cursor{b: list})
	})
}
