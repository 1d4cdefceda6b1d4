package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/ipvs/firstpacket"
	"saru/ipvs/usersync"
)

// A fakeGate remembers what it let go, and when.
type fakeGate struct {
	mu       sync.Mutex
	accepted map[uint32]time.Time
	targets  map[netip.AddrPort]struct{}
}

func (g *fakeGate) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (g *fakeGate) Close() error { return nil }

func (g *fakeGate) Accept(id uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accepted[id] = time.Now()
	return nil
}

func (g *fakeGate) Restore() (bool, error) { return false, nil }

func (g *fakeGate) SetTargets(t map[netip.AddrPort]struct{}) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.targets = t
	return nil
}

// after returns how long after start packet id was let go, -1 if it waits.
func (g *fakeGate) after(start time.Time, id uint32) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at, ok := g.accepted[id]; ok {
		return at.Sub(start)
	}
	return -1
}

const deferTest = 20 * time.Millisecond

// deferring makes n hold first packets back.
func (n *node) deferring(t *testing.T) *fakeGate {
	t.Helper()
	g := &fakeGate{accepted: map[uint32]time.Time{}}
	d := newDeferral(slog.New(slog.DiscardHandler), deferTest, n.session.Hearing, func(opening) bool { return false })
	d.gate = g
	synctest.Wait() // the engine runs already, and looks at it when it does something
	n.deferral = d
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

func firstPacket(id uint32, c *conntable.Connection) firstpacket.Packet {
	return firstpacket.Packet{ID: id, Client: c.Client, Target: c.Virtual}
}

func TestFirstPacketWaitsForThePeersKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 201)
		g := a.deferring(t)
		conn := tcp(1, synRecv, time.Minute)
		start := time.Now()
		a.deferral.arrived(firstPacket(1, &conn))
		time.Sleep(time.Millisecond)
		if d := g.after(start, 1); d >= 0 {
			t.Fatalf("let go after %v, before anybody knew", d)
		}
		a.hear(usersync.KindNew, conn)
		time.Sleep(2 * time.Millisecond)
		if _, there := b.kernel.get(conn.Key); !there {
			t.Fatal("b's kernel does not have it")
		}
		if d := g.after(start, 1); d < 0 || d > 3*time.Millisecond {
			t.Errorf("let go after %v, want as soon as b's kernel had the connection", d)
		}
		// The event may come before the packet, the other way round under NAT.
		nat := tcp(3, synRecv, time.Minute)
		a.hear(usersync.KindNew, nat)
		time.Sleep(10 * time.Millisecond)
		start = time.Now()
		a.deferral.arrived(firstpacket.Packet{ID: 2, Client: nat.Client, Target: nat.Dest})
		if d := g.after(start, 2); d != 0 {
			t.Errorf("let go after %v, want at once: b knew it before", d)
		}
		if c := a.deferral.counts(); c.Acked != 1 || c.Late != 0 || c.Passed != 1 || c.Waiting != 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestFirstPacketWaitsNoLongerThanTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, network := twoNodes(t, 202)
		g := a.deferring(t)
		network.SetCut(a.net, b.net, true) // b is believed to be up for a while
		conn := tcp(1, synRecv, time.Minute)
		start := time.Now()
		a.deferral.arrived(firstPacket(1, &conn))
		a.hear(usersync.KindNew, conn)
		time.Sleep(5 * time.Millisecond)
		a.deferral.arrived(firstPacket(2, &conn)) // the client sends it again
		other := tcp(3, synRecv, time.Minute)
		a.deferral.arrived(firstPacket(3, &other)) // nobody tells of it
		time.Sleep(100 * time.Millisecond)
		if one, two, three := g.after(start, 1), g.after(start, 2), g.after(start, 3); one != deferTest || two != deferTest || three != deferTest+5*time.Millisecond {
			t.Errorf("let go after %v, %v and %v, want 20, 20 and 25 ms", one, two, three)
		}
		time.Sleep(3 * time.Second) // b is silent now
		start = time.Now()
		a.deferral.arrived(firstPacket(4, &conn))
		if d := g.after(start, 4); d != 0 {
			t.Errorf("let go after %v without a peer, want at once", d)
		}
	})
}

// A receipt is for what is in the kernel, not for what has come.
func TestReceiptIsTheKernels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 203)
		g := a.deferring(t)
		b.kernel.mu.Lock()
		b.kernel.fail = fmt.Errorf("stuck")
		b.kernel.mu.Unlock()
		conn := tcp(1, synRecv, time.Minute)
		start := time.Now()
		a.deferral.arrived(firstPacket(1, &conn))
		a.hear(usersync.KindNew, conn)
		time.Sleep(100 * time.Millisecond)
		if d := g.after(start, 1); d != deferTest {
			t.Errorf("let go after %v though b's kernel takes nothing, want after %v", d, deferTest)
		}
	})
}

func TestHeldPacketsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, _ := twoNodes(t, 204)
		g := a.deferring(t)
		start := time.Now()
		for i := range firstpacket.Waiting + 10 {
			c := tcp(i, synRecv, time.Minute)
			a.deferral.arrived(firstPacket(uint32(i), &c))
		}
		if c := a.deferral.counts(); c.Waiting != firstpacket.Waiting || c.Passed != 10 {
			t.Errorf("%+v", c)
		}
		time.Sleep(time.Second)
		if d := g.after(start, 0); d != deferTest || len(g.accepted) != firstpacket.Waiting+10 || len(a.deferral.order) != 0 {
			t.Errorf("the first after %v, %d let go, %d remembered", d, len(g.accepted), len(a.deferral.order))
		}
		for i := range 3 * maxRecent {
			a.deferral.told([]conntable.Record{{Connection: tcp(i, synRecv, time.Minute)}}, 1)
		}
		if len(a.deferral.recent) > maxRecent || len(a.deferral.aged) > maxRecent {
			t.Errorf("%d and %d remembered", len(a.deferral.recent), len(a.deferral.aged))
		}
	})
}

func TestDeferTargets(t *testing.T) {
	g := &fakeGate{}
	d := newDeferral(slog.New(slog.DiscardHandler), deferTest, nil, nil)
	d.gate = g
	must(t, d.setTargets(&Services{Targets: map[Target]struct{}{
		{Virtual: vip, Protocol: 6, Dest: realA}: {},
		{FWMark: 5, Dest: realB}:                 {},
		{Virtual: netip.MustParseAddrPort("10.9.0.100:53"), Protocol: 17, Dest: netip.MustParseAddrPort("192.168.6.10:53")}: {},
	}}))
	var got []string
	for t := range g.targets {
		got = append(got, t.String())
	}
	slices.Sort(got)
	if want := []string{vip.String(), realA.String(), realB.String()}; !slices.Equal(got, want) {
		t.Errorf("targets %v, want %v", got, want)
	}
}

func BenchmarkDefer(b *testing.B) {
	d := newDeferral(slog.New(slog.DiscardHandler), time.Hour, func() bool { return true }, func(opening) bool { return false })
	d.gate = &fakeGate{accepted: map[uint32]time.Time{}}
	b.ReportAllocs()
	for i := range b.N {
		c := tcp(i&0xffff, synRecv, time.Minute)
		d.arrived(firstPacket(uint32(i), &c))
		d.told([]conntable.Record{{Connection: c}}, uint64(i+1))
		d.received(uint64(i + 1))
	}
}
