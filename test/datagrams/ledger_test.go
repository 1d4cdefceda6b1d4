package datagrams

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

func at(ms int) time.Time { return time.Unix(1000, int64(ms)*1e6) }

// Two flows, of d1 and of d2. d1 falls at 20 ms, d2 has its flow from 70 ms on.
func TestLedger(t *testing.T) {
	l := &Ledger{Flows: 2}
	for n := range 12 {
		l.send()
		l.sent[n] = at(10 * n)
	}
	for n := range uint32(12) {
		switch {
		case n%2 == 1:
			l.accept(n, Acceptance{"d2", at(int(10*n) + 1)})
		case n < 2 || n >= 8:
			l.accept(n, Acceptance{map[bool]string{true: "d1", false: "d2"}[n < 2], at(int(10*n) + 1)})
		}
	}
	l.accept(4711, Acceptance{"d1", at(0)}) // of nobody's
	s := l.Between(at(0), at(200))
	if s.Sent != 12 || s.Lost != 3 || s.Gap != 40*time.Millisecond || s.Outage != 40*time.Millisecond || s.By["d1"] != 1 || s.By["d2"] != 8 {
		t.Errorf("%+v", s)
	}
	if got := l.Takeover("d1", at(15)); !got.Equal(at(81)) {
		t.Errorf("taken over at %v", got)
	}
	if got := l.Takeover("d2", at(15)); !got.IsZero() {
		t.Errorf("d2's flow was taken over at %v", got)
	}
	if len(l.Twice()) != 0 {
		t.Errorf("twice: %+v", l.Twice())
	}
	l.accept(3, Acceptance{"d1", at(33)})
	if twice := l.Twice(); len(twice) != 1 || twice[0].Number != 3 || twice[0].First.By != "d2" || twice[0].By != "d1" {
		t.Errorf("twice: %+v", twice)
	}
	if arrived := l.ArrivedAt("d1", at(10)); len(arrived) != 1 || !arrived[0].Equal(at(33)) {
		t.Errorf("at d1: %v", arrived)
	}
}

// Two flows are down one after the other, each too short to have a gap of its
// own; a third loses one datagram some time later.
func TestOutage(t *testing.T) {
	l := &Ledger{Flows: 10}
	for n := range 100 {
		l.send()
		l.sent[n] = at(5 * n)
		if n != 10 && n != 14 && n != 19 && n != 45 {
			l.accept(uint32(n), Acceptance{"d1", at(5*n + 1)})
		}
	}
	if s := l.Between(at(0), at(1000)); s.Lost != 4 || s.Gap != 0 || s.Outage != 45*time.Millisecond {
		t.Errorf("%+v", s)
	}
}

func TestOverLoopback(t *testing.T) {
	c, err := Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	l := &Ledger{Flows: 3}
	flows, err := l.Dial(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(c.LocalAddr().(*net.UDPAddr).Port)))
	if err != nil {
		t.Skip(err) // a port is taken
	}
	done := make(chan struct{})
	go func() { defer close(done); l.Receive(c, "here") }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	l.Send(ctx, flows, 500)
	time.Sleep(50 * time.Millisecond)
	Close(flows)
	c.Close()
	<-done
	sent, accepted := l.Counts()
	if sent == 0 || accepted != sent || len(l.Twice()) != 0 {
		t.Errorf("%d sent, %d accepted", sent, accepted)
	}
	for _, when := range l.ArrivedAt("here", time.Now().Add(-time.Minute)) {
		if time.Since(when) > 10*time.Second {
			t.Errorf("arrived at %v", when)
		}
	}
}
