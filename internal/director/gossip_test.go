package director

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"saru/internal/seal"
	"saru/internal/testnet"
	"saru/membership"
)

// gossipAlone is the gossip of a node whose engine does not run.
func gossipAlone() *gossip {
	return &gossip{
		name: "d1", log: slog.New(slog.DiscardHandler), engine: &Engine{calls: make(chan func(now time.Duration), 1024), wakeFD: -1},
		peers: map[string]Peer{}, ever: map[string]netip.AddrPort{}, joining: map[string]bool{},
	}
}

// told is what memberlist says of a member that has gossip port 7946.
func told(t *testing.T, kind memberlist.NodeEventType, name, addr string) memberlist.NodeEvent {
	t.Helper()
	b, err := json.Marshal(meta{Port: 7947})
	if err != nil {
		t.Fatal(err)
	}
	n := &memberlist.Node{Name: name, Addr: net.ParseIP(addr), Port: 7946, Meta: b}
	return memberlist.NodeEvent{Event: kind, Node: n}
}

// Who is gone is gone, whatever it told last; who did not say farewell is looked
// for, once at a time.
func TestGone(t *testing.T) {
	g := gossipAlone()
	for _, name := range []string{"d2", "d3"} {
		g.handle(t.Context(), told(t, memberlist.NodeJoin, name, "10.9.0."+name[1:]))
	}
	if len(g.members()) != 2 || len(g.missing()) != 0 {
		t.Fatalf("members %v", g.members())
	}
	d2 := g.members()["d2"]
	d2.State = membership.Left.String()
	g.here("d2", netip.MustParseAddrPort("10.9.0.2:7946"), d2)
	for _, name := range []string{"d2", "d3"} {
		ev := told(t, memberlist.NodeLeave, name, "10.9.0.9")
		ev.Node.Meta = []byte("?")
		g.handle(t.Context(), ev)
	}
	if m := g.members(); len(m) != 0 {
		t.Errorf("still there: %v", m)
	}
	if m := fmt.Sprint(g.missing(), g.missing()); m != "[10.9.0.3:7946] []" {
		t.Errorf("looked for: %s", m)
	}
}

// Who says farewell is not looked for any more.
func TestFarewell(t *testing.T) {
	keys, err := seal.ParseKeyring([]byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	first := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	second := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), first.Port())
	start := func(name string, bind netip.AddrPort, join ...netip.AddrPort) (g *gossip, stop func()) {
		g, err := openGossip(slog.New(slog.DiscardHandler), &Settings{Cluster: "web", Node: name, Bind: bind, Join: join, Keys: keys, Lease: 300 * time.Millisecond}, gossipAlone().engine, "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		stop = sync.OnceFunc(func() {
			cancel()
			if err := errors.Join(<-done, g.close()); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(stop)
		return g, stop
	}
	d1, _ := start("d1", first)
	d2, stop := start("d2", second, first)
	testnet.Await(t, "each knows the other", func() bool { return len(d1.members()) == 1 && len(d2.members()) == 1 })
	stop()
	testnet.Await(t, "d2 is gone", func() bool { return len(d1.members()) == 0 })
	if m := d1.missing(); len(m) != 0 {
		t.Errorf("looked for after a farewell: %v", m)
	}
}

// Heartbeats are IPv4: a member that tells another address is none.
func TestMemberWithoutIPv4(t *testing.T) {
	g := gossipAlone()
	for _, addr := range []string{"2001:db8::2", ""} {
		g.handle(t.Context(), told(t, memberlist.NodeJoin, "d2", addr))
	}
	if m := g.members(); len(m) != 0 {
		t.Errorf("taken: %v", m)
	}
}

// Hosts that are replaced under new names do not use up the room for them.
func TestManyNames(t *testing.T) {
	g := gossipAlone()
	for i := range 3 * maxEver {
		name := fmt.Sprintf("host%d", i)
		g.handle(t.Context(), told(t, memberlist.NodeJoin, name, fmt.Sprintf("10.9.%d.%d", i/200, i%200)))
		g.handle(t.Context(), told(t, memberlist.NodeLeave, name, "10.9.0.1"))
	}
	g.handle(t.Context(), told(t, memberlist.NodeJoin, "d2", "10.9.9.2"))
	if _, known := g.ever["d2"]; !known || len(g.ever) > maxEver {
		t.Errorf("d2 is known: %v, of %d", known, len(g.ever))
	}

	e := newPair(t).engines[0]
	for i := range 3 * maxWays {
		e.learn(membership.NodeID(1000+i), netip.MustParseAddrPort("10.9.0.9:7947"))
	}
	at := netip.MustParseAddrPort("10.9.9.2:7947")
	e.learn(membership.ID("d2"), at)
	if e.ways[membership.ID("d2")].addr != at || len(e.ways) > maxWays {
		t.Errorf("d2 is at %v, of %d", e.ways[membership.ID("d2")].addr, len(e.ways))
	}
}
