package peer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

// tellEvery makes s tell a record every 20 ms for so long.
func tellEvery(s *Session, d time.Duration) {
	for range d / (20 * time.Millisecond) {
		s.Send([]conntable.Record{now(s)})
		time.Sleep(20 * time.Millisecond)
	}
}

// A node to which a switch passes the group's datagrams no more is sent to
// alone within two seconds, nothing is lost, and both say so. When they come
// again that ends.
func TestPrunedFromTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, a, b, got := pair(t)
		network.SetPruned(network.Get(2), true)
		tellEvery(a, 4*time.Second)
		before := count(got)
		tellEvery(a, time.Second)
		if n := count(got) - before; n < 48 {
			t.Errorf("%d of 50 records came while pruned", n)
		}
		if p := a.Peers()[0]; p.Path != "alone" || p.State == "silent" {
			t.Errorf("a of b: %+v", p)
		}
		for _, s := range []*Session{a, b} {
			if w := strings.Join(s.Warnings(), "\n"); !strings.Contains(w, "multicast") {
				t.Errorf("%s warns of %q", s.cfg.Node, w)
			}
		}
		network.SetPruned(network.Get(2), false)
		tellEvery(a, 2*time.Second)
		if p, w := a.Peers()[0], append(a.Warnings(), b.Warnings()...); p.Path != "group" || len(w) > 0 {
			t.Errorf("a of b when it is over: %+v, %v", p, w)
		}
		if p := b.Peers()[0]; p.Missing > 0 || count(got) != 350 {
			t.Errorf("%d of 350 records came, %+v", count(got), p)
		}
	})
}

// Datagrams are as large as the own link and the path take, and no larger.
func TestDatagramsFitThePath(t *testing.T) {
	const jumbo = 8972
	for _, c := range []struct {
		name              string
		own, theirs, path int // largest payloads
		want              int
	}{
		{"jumbo all the way", jumbo, jumbo, jumbo, jumbo},
		{"the peer's link takes 1,500", jumbo, DefaultDatagram, jumbo, jumbo}, // what it gets counts, not what it sends
		{"the switch takes 1,500", jumbo, jumbo, DefaultDatagram, DefaultDatagram},
		{"a tunnel on the way", DefaultDatagram, DefaultDatagram, 1350, minIPv6Datagram},
		{"our own link is small", 1200, DefaultDatagram, jumbo, 1200},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, a, b, got := pairOf(t, c.own, c.theirs)
				network.SetMTU(c.path)
				time.Sleep(2*sizeFor + time.Second)
				if got := int(a.size.Load()); got != c.want {
					t.Fatalf("datagrams of %d bytes, want %d", got, c.want)
				}
				recs := make([]conntable.Record, 3000)
				for i := range recs {
					recs[i] = now(a)
					recs[i].Version.Clock += uint64(i) * 1000 // some bytes each
				}
				before := count(got)
				a.Send(recs)
				time.Sleep(time.Second)
				if p := b.Peers()[0]; count(got)-before != len(recs) || p.Missing > 0 {
					t.Errorf("%d of %d records came, %d datagrams missing", count(got)-before, len(recs), p.Missing)
				}
				datagrams, _ := a.Sent()
				if most := len(recs) * 10 / c.want; int(datagrams) > 2*most+2 {
					t.Errorf("%d datagrams for some %d bytes", datagrams, len(recs)*10)
				}
			})
		})
	}
}

// A path that becomes smaller is noticed, and what was lost meanwhile mended.
func TestPathShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, a, b, got := pairOf(t, 8972, 8972)
		time.Sleep(2 * sizeFor)
		network.SetMTU(DefaultDatagram)
		tellEvery(a, 3*sizeFor)
		if n := int(a.size.Load()); n != DefaultDatagram {
			t.Errorf("datagrams of %d bytes, want %d", n, DefaultDatagram)
		}
		if p := b.Peers()[0]; p.Missing > 0 || count(got) != 1500 {
			t.Errorf("%d of 1500 records came, %+v", count(got), p)
		}
	})
}

// manyTold reports how many of so many records a tells at once come to b within
// a tenth of a second: before a pull would have brought them.
func manyTold(a *Session, got *[]conntable.Record, n int) int {
	recs := make([]conntable.Record, n)
	for i := range recs {
		recs[i] = now(a)
		recs[i].Version.Clock += uint64(i) * 1000 // some bytes each
	}
	before := count(got)
	a.Send(recs)
	time.Sleep(100 * time.Millisecond)
	return count(got) - before
}

// What the system refuses to send is not tried again and again, whatever the
// peers say that came before; when it takes larger datagrams again they are made.
func TestSystemRefuses(t *testing.T) {
	for _, c := range []struct{ own, room, want int }{
		{8972, DefaultDatagram, DefaultDatagram},
		{DefaultDatagram, 1400, minIPv6Datagram},
		{DefaultDatagram, 600, MinDatagram},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.room, c.own), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, a, b, got := pairOf(t, c.own, c.own)
				time.Sleep(2 * sizeFor)
				if n := int(a.size.Load()); n != c.own {
					t.Fatalf("datagrams of %d bytes, want %d", n, c.own)
				}
				network.RefuseAbove(c.room)
				for range 2 { // the largest, then one that is probed for
					manyTold(a, got, 3000)
				}
				for i := range 60 {
					if n := manyTold(a, got, 3000); n != 3000 {
						t.Fatalf("%d s later %d of 3000 records came", i, n)
					}
					time.Sleep(900 * time.Millisecond)
				}
				if n := int(a.size.Load()); n != c.want {
					t.Errorf("datagrams of %d bytes, want %d", n, c.want)
				}
				if p := b.Peers()[0]; p.Missing > 0 {
					t.Errorf("%+v", p)
				}
				network.RefuseAbove(0)
				time.Sleep(roomFor + 10*time.Second)
				if n := int(a.size.Load()); n != c.own {
					t.Errorf("datagrams of %d bytes when it is over, want %d", n, c.own)
				}
			})
		})
	}
}

// overIPv6 is a node over it.
type overIPv6 struct{ *peertest.Node }

func (overIPv6) Headers() int { return ipv6UDPHeaders }

// Nobody who leaves the size to the session has datagrams refused on a usual
// link, of either family.
func TestUsualLinkTakesAll(t *testing.T) {
	kr := keys(t, keyA)
	for _, over := range []func(*peertest.Node) Transport{
		func(nd *peertest.Node) Transport { return nd },
		func(nd *peertest.Node) Transport { return overIPv6{nd} },
	} {
		synctest.Test(t, func(t *testing.T) {
			network := peertest.New(1)
			tr := over(network.Node(1))
			room := 1500 - tr.Headers()
			network.RefuseAbove(room)
			a, _ := session(t, kr, "d1", tr)
			b, got := session(t, kr, "d2", over(network.Node(2)))
			runAll(t, a, b)
			time.Sleep(5 * time.Second)
			for range 20 {
				if n := manyTold(a, got, 3000); n != 3000 {
					t.Fatalf("%d of 3000 records came", n)
				}
				time.Sleep(time.Second)
			}
			if n := a.drops[DropSend].Load() + b.drops[DropSend].Load(); n > 0 || int(a.size.Load()) != room {
				t.Errorf("%d datagrams refused; of %d bytes, want %d", n, a.size.Load(), room)
			}
		})
	}
}

// Two nodes of one name: each says so, and so do the others.
func TestTwoOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		network := peertest.New(1)
		var all []*Session
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 3)
		for i, name := range []string{"d1", "d2", "d2"} {
			s, _ := session(t, kr, name, network.Node(i+1))
			all = append(all, s)
			go func() { ended <- s.Run(ctx) }()
			time.Sleep(time.Second)
		}
		time.Sleep(3 * time.Second)
		for i, want := range []string{`two nodes are called "d2", at 10.0.0.`, `another node, at 10.0.0.3:8849, has our name "d2"`, `another node, at 10.0.0.2:8849, has our name "d2"`} {
			if w := strings.Join(all[i].Warnings(), "\n"); !strings.Contains(w, want) {
				t.Errorf("node %d warns of %q, want %q", i+1, w, want)
			}
		}
		cancel()
		for range all {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// A warning ends when its cause does.
func TestNameClashPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		s, _ := session(t, kr, "d1", silent{peertest.New(1).Node(1)})
		d, _ := seal.NewSealer(kr, purposeDatagram).Seal(nil, (&heartbeat{incarnation: 1, lowest: 1, port: 1, name: "d1"}).append(nil, s.self))
		s.receive(d, from, true)
		if len(s.Warnings()) != 1 {
			t.Errorf("warnings %v", s.Warnings())
		}
		time.Sleep(clashFor + time.Second)
		if len(s.Warnings()) != 0 {
			t.Errorf("warnings %v after it was over", s.Warnings())
		}
	})
}

// News is told in many datagrams while heartbeats change how it is told.
func TestSendWhileSizesChange(t *testing.T) {
	kr := keys(t, keyA)
	s, _ := sessionOf(t, kr, "d1", nowhere{}, 8972)
	sealer := seal.NewSealer(kr, purposeDatagram)
	recs := make([]conntable.Record, 4000)
	for i := range recs {
		recs[i] = now(s)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			s.Send(recs)
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		default:
		}
		hb := heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d2", version: 1 + uint8(i%2)}
		hb.paths = []path{{node: s.self, size: uint16(1000 * (i % 9))}}
		d, _ := sealer.Seal(nil, hb.append(nil, conntable.NodeIDOf("d2")))
		s.receive(d, from, true)
		s.mu.Lock()
		s.peers[conntable.NodeIDOf("d2")].since = time.Time{} // its word counts
		s.mu.Unlock()
	}
}

// count is how many records were delivered by now, in virtual time.
func count(got *[]conntable.Record) int {
	synctest.Wait()
	return len(*got)
}
