package director

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"
)

// noKernel is a Filter that does what it is told.
type noKernel struct {
	armed, confirmed int
	newest           uint64
}

func (k *noKernel) Arm(n uint64) error {
	if n <= k.newest {
		return nft.ErrNotArmed
	}
	k.armed, k.newest = k.armed+1, n
	return nil
}

func (k *noKernel) Confirm(n uint64) error {
	if n > k.newest {
		return nft.ErrNotArmed
	}
	k.confirmed++
	return nil
}
func (k *noKernel) Apply(nft.Desired) error                    { return nil }
func (k *noKernel) Settle(*partition.Set, time.Duration) error { return nil }
func (k *noKernel) Verify() (bool, error)                      { return true, nil }
func (k *noKernel) Reset() error                               { return nil }
func (k *noKernel) Replan(partition.Plan) error                { return nil }
func (k *noKernel) Buckets() ([]nft.BucketStats, error)        { return nil, nil }
func (k *noKernel) Stats() (nft.Stats, error)                  { return nft.Stats{}, nil }
func (k *noKernel) Close() error                               { return nil }

// A pair is two engines that hear each other over the loopback interface. The
// test does their turns.
type pair struct {
	engines [2]*Engine
	kernels [2]noKernel
}

func newPair(t testing.TB) *pair {
	t.Helper()
	keys := newKeys(t)
	p := &pair{}
	for i := range p.engines {
		s := &Settings{
			Cluster: "test", Node: string(rune('a' + i)), Keys: keys, Weight: 100, ID: 1, Buckets: 256, Lease: time.Second,
			Bind: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 83, byte(1 + i)}), 17946),
			Join: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 83, byte(2 - i)}), 17946)},
		}
		udp, err := openUDP(s.Bind, keys)
		if err != nil {
			t.Fatal(err)
		}
		e, err := newEngine(slog.New(slog.DiscardHandler), s, context.Background(), &p.kernels[i], []*path{udp})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.close(); udp.close() })
		e.core.SetGate(0, true, true)
		p.engines[i] = e
	}
	return p
}

// beat has both engines tick, and answer until nothing is left to say.
func (p *pair) beat() {
	for _, e := range p.engines {
		e.nextTick = 0
		e.turn()
	}
	for range 3 {
		for _, e := range p.engines {
			e.nextTick = time.Hour
			e.turn()
		}
	}
}

// serving beats until both have granted each other's share.
func (p *pair) serving(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		p.beat()
		if p.kernels[0].confirmed > 10 && p.kernels[1].confirmed > 10 {
			return
		}
	}
	t.Fatalf("two engines do not get on: %+v, %+v", p.engines[0].core.Snapshot(0), p.engines[1].core.Snapshot(0))
}

// The path of every heartbeat allocates nothing: armed, sealed, sent, received,
// opened, granted, answered, confirmed.
func TestHeartbeatsDoNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	p := newPair(t)
	p.serving(t)
	before := p.kernels
	const beats = 100
	allocs := testing.AllocsPerRun(beats, p.beat)
	if allocs != 0 {
		t.Errorf("%v allocations a beat", allocs)
	}
	for i := range p.kernels {
		if armed, confirmed := p.kernels[i].armed-before[i].armed, p.kernels[i].confirmed-before[i].confirmed; armed < beats || confirmed < beats/2 {
			t.Errorf("%d beats armed and %d confirmed of %d: the test proves nothing", armed, confirmed, beats)
		}
	}
}

// One tick of two directors and all it makes them say: 2 heartbeats, 2 answers.
func BenchmarkHeartbeat(b *testing.B) {
	p := newPair(b)
	p.serving(b)
	b.ReportAllocs()
	for b.Loop() {
		p.beat()
	}
}
