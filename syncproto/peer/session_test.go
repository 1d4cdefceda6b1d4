package peer

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func keys(t testing.TB, line string) *seal.Keyring {
	t.Helper()
	kr, err := seal.ParseKeyring([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return kr
}

const (
	keyA = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	keyB = "/wECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

func session(t testing.TB, kr *seal.Keyring, name string, tr Transport) (*Session, *[]conntable.Record) {
	t.Helper()
	return sessionOf(t, kr, name, tr, 0)
}

func sessionOf(t testing.TB, kr *seal.Keyring, name string, tr Transport, datagram int) (*Session, *[]conntable.Record) {
	t.Helper()
	var got []conntable.Record
	return NewSession(Config{
		Node: name, Keys: kr, Clock: conntable.NewClock(conntable.NodeIDOf(name)), Transport: tr, Log: slog.New(slog.DiscardHandler),
		Datagram: datagram,
		Deliver:  func(recs []conntable.Record) { got = append(got, recs...) },
		Ranked:   func() conntable.Cursor { return conntable.Cursor{} },
		Walk:     func(*conntable.Cursor, *conntable.Slices, []conntable.Record) int { return 0 },
		Len:      func() int { return 0 },
	}), &got
}

// now is a record of who, as it is told now.
func now(s *Session) conntable.Record {
	r := conn("10.1.0.1:40000", 1)
	r.Version = s.cfg.Clock.Next()
	return r
}

var from = netip.MustParseAddrPort("10.0.0.9:8849")

func TestWhatIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		network := peertest.New(1)
		s, got := session(t, kr, "d1", network.Node(1))
		sealer := seal.NewSealer(kr, purposeDatagram)
		sealed := func(plain []byte) []byte { d, _ := sealer.Seal(nil, plain); return d }
		other := conntable.NodeIDOf("d2")
		hb := heartbeat{incarnation: 9, highest: 4, lowest: 1, clock: 1, port: 8849, name: "d2"}
		clock := s.cfg.Clock.Now()
		at := func(clock, seq uint64, b []byte) []byte {
			return sealed(append((&recordsHead{version: 2, sequence: seq, clock: clock}).append(nil, other), b...))
		}
		body := func(seq uint64, b []byte) []byte { return at(clock, seq, b) }
		good := sealed(hb.append(nil, other))
		oldRecord := conn("10.1.0.2:40000", 1) // of 1970, live
		oldRecord.Version = conntable.Version{Clock: conntable.LiveClock + 1, Node: self}
		ago, long := encode(t, 2, oldRecord)
		wrongVersion := hb.append(nil, other)
		wrongVersion[0] = protocolVersion + 1
		forged := sealed(hb.append(nil, other))
		forged[len(forged)-1] ^= 1
		foreign := seal.NewSealer(keys(t, keyB), purposeDatagram)
		foreignD, _ := foreign.Seal(nil, hb.append(nil, other))
		heartbeats := seal.NewSealer(kr, "saru heartbeat")
		otherPurpose, _ := heartbeats.Seal(nil, hb.append(nil, other))
		oldBoot := seal.NewSealer(kr, purposeDatagram)
		earlier := hb
		earlier.incarnation = 8
		oldBootD, _ := oldBoot.Seal(nil, earlier.append(nil, other))
		own, _ := s.sealer.Seal(nil, hb.append(nil, s.self))
		named := hb
		named.name = "d3"

		for _, c := range []struct {
			name string
			d    []byte
			want Drop
		}{
			{"nothing", nil, DropShort},
			{"another seal", append([]byte{9}, good[1:]...), DropSeal},
			{"another cluster's key", foreignD, DropKey},
			{"a changed bit", forged, DropForged},
			{"another purpose", otherPurpose, DropForged},
			{"good", good, dropCount},
			{"the same again", good, DropReplay},
			{"our own", own, DropOwn},
			{"our name", sealed(hb.append(nil, s.self)), DropNameClash},
			{"two names for one node", sealed(named.append(nil, other)), DropNameClash},
			{"an earlier life", oldBootD, DropOldBoot},
			{"a later protocol", sealed(wrongVersion), DropVersion},
			{"an unknown type", sealed(appendHead(nil, 99, other)), DropType},
			{"a bulk message", sealed(appendHead(nil, typeBegin, other)), DropType},
			{"half a heartbeat", sealed(hb.append(nil, other)[:40]), DropMalformed},
			{"records without a sequence", body(0, nil), DropMalformed},
			{"a sequence out of range", sealed((&recordsHead{version: 2, sequence: conntable.MaxClock + 1, clock: clock}).append(nil, other)), DropMalformed},
			{"version 1, a sequence out of range", sealed((&recordsHead{version: 1, sequence: conntable.MaxClock + 1, clock: clock}).append(nil, other)), DropMalformed},
			{"bad groups", body(5, []byte{1, 0x80}), DropGroups},
			{"the same records again", body(5, nil), DropDuplicate},
			{"a record of long ago", at(long, 6, ago), DropLate},
			{"missing, of our earlier life", sealed((&missing{ranges: []span{{1, 1}}}).append(nil, other)), DropOldBoot},
			{"missing, what never was", sealed((&missing{boot: s.sealer.Boot(), ranges: []span{{1, 1 << 31}}}).append(nil, other)), DropGone},
			{"missing, nothing", sealed((&missing{boot: s.sealer.Boot()}).append(nil, other)), DropMalformed},
			{"ask for nothing", sealed(appendReceipt(nil, typeAsk, other, seal.Boot{7}, 0)), DropMalformed},
			{"half an ask", sealed(appendReceipt(nil, typeAsk, other, seal.Boot{7}, 1)[:20]), DropMalformed},
			{"receipt of our earlier life", sealed(appendReceipt(nil, typeReceipt, other, seal.Boot{7}, 1)), DropOldBoot},
			{"receipt for nothing", sealed(appendReceipt(nil, typeReceipt, other, s.sealer.Boot(), 0)), DropMalformed},
		} {
			var before [dropCount]uint64
			for i := range s.drops {
				before[i] = s.drops[i].Load()
			}
			s.receive(c.d, from, true)
			for i := range s.drops {
				want := before[i]
				if Drop(i) == c.want {
					want++
				}
				if n := s.drops[i].Load(); n != want {
					t.Errorf("%s: counted %d of %v, want %d", c.name, n-before[i], Drop(i), want-before[i])
				}
			}
		}
		if len(*got) != 0 {
			t.Errorf("delivered %+v", *got)
		}
		synctest.Wait()
	})
}

func TestPeersAreBounded(t *testing.T) {
	kr := keys(t, keyA)
	s, _ := session(t, kr, "d1", peertest.New(1).Node(1))
	for i := range 2 * maxPeers {
		sealer := seal.NewSealer(kr, purposeDatagram)
		hb := heartbeat{incarnation: 1, clock: 1, lowest: 1, port: 1, name: "x" + string(rune('0'+i%10))}
		d, _ := sealer.Seal(nil, hb.append(nil, conntable.NodeID(i+1)))
		s.receive(d, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 8849), true)
	}
	if len(s.peers) != maxPeers || s.drops[DropPeers].Load() != maxPeers {
		t.Errorf("%d peers, %d dropped", len(s.peers), s.drops[DropPeers].Load())
	}
}

func TestResendingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		s, _ := session(t, kr, "d1", peertest.New(1).Node(1))
		for range 3000 {
			s.Send([]conntable.Record{now(s)})
		}
		sealer := seal.NewSealer(kr, purposeDatagram)
		ask := func() {
			d, _ := sealer.Seal(nil, (&missing{boot: s.sealer.Boot(), ranges: []span{{1, 3000}}}).append(nil, 77))
			s.receive(d, from, true)
		}
		ask()
		ask()
		if s.resent > resendsPerTick+2 || s.drops[DropFlood].Load() != 2 {
			t.Errorf("resent %d, %d floods", s.resent, s.drops[DropFlood].Load())
		}
		synctest.Wait()
	})
}

// Of what a peer misses it gets all that is kept, though what goes before that
// is not any more.
func TestResendsWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		s, _ := session(t, kr, "d1", peertest.New(1).Node(1))
		clocks := []uint64{0}
		for range ringSize + 10 {
			time.Sleep(time.Millisecond)
			r := now(s)
			clocks = append(clocks, r.Version.Clock)
			s.Send([]conntable.Record{r})
		}
		for seq := s.ring.lowest(); seq <= s.ring.highest; seq++ {
			k, _ := s.ring.get(seq)
			var h head
			var rh recordsHead
			if c, err := h.parse(k.message); err != nil || rh.parse(&h, &c) != nil || rh.sequence != seq || rh.clock != clocks[seq] {
				t.Errorf("datagram %d is kept as %+v, want clock %d", seq, rh, clocks[seq])
			}
		}
		sealer := seal.NewSealer(kr, purposeDatagram)
		d, _ := sealer.Seal(nil, (&missing{boot: s.sealer.Boot(), ranges: []span{{1, 20}, {ringSize + 9, ringSize + 100}}}).append(nil, 77))
		s.receive(d, from, true)
		if s.resent != 9+2 || s.drops[DropGone].Load() != 2 {
			t.Errorf("%d were sent again, want those from 12 to 20 and the last 2; %d ranges with some that are gone, want 2", s.resent, s.drops[DropGone].Load())
		}
		synctest.Wait()
	})
}

// A node that is heard by datagrams but cannot be pulled from must not keep a
// joiner out for ever.
func TestJoinGoesOnWithoutAPeerThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		kr := keys(t, keyA)
		s, _ := session(t, kr, "d1", network.Node(1))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		deaf := network.Node(2)
		deaf.Close()
		sealer := seal.NewSealer(kr, purposeDatagram)
		go func() {
			for ctx.Err() == nil {
				hb := heartbeat{incarnation: 1, clock: 1, lowest: 1, port: peertest.Port, name: "d2"}
				d, _ := sealer.Seal(nil, hb.append(nil, conntable.NodeIDOf("d2")))
				deaf.Broadcast([][]byte{d})
				time.Sleep(heartbeatEvery)
			}
		}()
		time.Sleep(DefaultStartPeriod + 100*time.Millisecond)
		select {
		case <-s.Joined():
			t.Error("joined though a peer's table was not pulled")
		default:
		}
		time.Sleep(30 * time.Second)
		select {
		case <-s.Joined():
		default:
			t.Error("not joined after 30 s")
		}
		if p := s.Peers(); len(p) != 1 || p[0].Error == "" {
			t.Errorf("peers: %+v", p)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(heartbeatEvery) // the deaf one sees it too
	})
}

func BenchmarkSendReceive(b *testing.B) {
	kr := keys(b, keyA)
	s, _ := session(b, kr, "d1", nowhere{})
	r, _ := session(b, kr, "d2", nowhere{})
	r.live.deliver = func([]conntable.Record) {}
	recs := make([]conntable.Record, 100)
	for i := range recs {
		recs[i] = conn("10.1.0.1:40000", 1)
		recs[i].Client = netip.AddrPortFrom(recs[i].Client.Addr(), uint16(i))
		recs[i].Version.Node = s.self
	}
	b.ReportAllocs()
	for b.Loop() {
		for i := range recs {
			recs[i].Version = s.cfg.Clock.Next()
		}
		s.Send(recs)
		r.receive(s.out[0], from, true)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/record")
}

// nowhere is a Transport that loses everything.
type nowhere struct{ Transport }

func (nowhere) Group() bool                           { return true }
func (nowhere) Headers() int                          { return ipUDPHeaders }
func (nowhere) Broadcast([][]byte) error              { return nil }
func (nowhere) SendTo([][]byte, netip.AddrPort) error { return nil }
