package membership

import (
	"fmt"
	"testing"
	"time"

	"saru/partition"
)

// pair is two Cores that talk to each other over the wire format.
type pair struct {
	cores [2]*Core
	dec   [2]Decoder
	now   time.Duration
	queue [64][]byte
	to    [64]int
	n     int
	gives [2][]int // how many buckets each had open at its Gives
}

func newPair(buckets int) *pair {
	p := &pair{}
	for i := range p.cores {
		p.cores[i] = New(Config{
			Node: string(rune('a' + i)), Incarnation: uint64(i) + 1, Host: uint64(i) + 1, Cluster: "c", Share: 1, Shape: 7, Buckets: buckets,
			Lease: simLease, Interval: simInterval, Arm: simArm, Settle: 10 * time.Millisecond, Weight: 100, Frames: true,
		}, 0)
		p.cores[i].SetGate(0, true, true)
	}
	return p
}

func (p *pair) act(i int) {
	for _, a := range p.cores[i].Actions() {
		switch a.Kind {
		case Send:
			p.queue[p.n], p.to[p.n] = a.Message.Append(p.queue[p.n][:0]), 1-i
			p.n++
		case Apply:
			p.cores[i].Applied(p.now, a.Open, a.Rest, true)
			p.act(i)
			return
		case Give:
			p.gives[i] = append(p.gives[i], p.cores[i].sure.Len())
		case Barrier:
			p.cores[i].BarrierDone(p.now, a.N)
			p.act(i)
			return
		}
	}
}

func (p *pair) interval() {
	p.now += simInterval
	for i := range p.cores {
		p.cores[i].Tick(p.now)
		p.act(i)
		for k := 0; k < p.n; k++ {
			m, err := p.dec[p.to[k]].Decode(p.queue[k])
			if err != nil {
				panic(err)
			}
			c := p.cores[p.to[k]]
			c.Frame(p.now, m)
			c.Receive(p.now, m)
			p.act(p.to[k])
		}
		p.n = 0
	}
}

// The path of a heartbeat, from the tick to the confirmed lease, must not
// allocate: the collector would stop it.
func TestHeartbeatsDoNotAllocate(t *testing.T) {
	for _, buckets := range []int{2, 256, MaxBuckets} {
		heartbeatsDoNotAllocate(t, buckets)
	}
}

func heartbeatsDoNotAllocate(t *testing.T, buckets int) {
	p := newPair(buckets)
	for range 400 {
		p.interval()
	}
	for _, c := range p.cores {
		if c.open.Len() != buckets/2 || c.confirmed+1 < c.n {
			t.Fatalf("not in steady state: %+v", c.Snapshot(p.now))
		}
	}
	if n := testing.AllocsPerRun(200, p.interval); n > 0 {
		t.Errorf("an interval of two directors allocates %v times", n)
	}
}

func BenchmarkInterval(b *testing.B) {
	for _, buckets := range []int{256, MaxBuckets} {
		b.Run(fmt.Sprint(buckets, " buckets"), func(b *testing.B) { benchmarkInterval(b, buckets) })
	}
}

func benchmarkInterval(b *testing.B, buckets int) {
	p := newPair(buckets)
	for range 400 {
		p.interval()
	}
	b.ReportAllocs()
	for b.Loop() {
		p.interval()
	}
}

// What is held in rest is never less than what is open, and goes with it.
func TestApplyAsksForRestWithOpen(t *testing.T) {
	p := newPair(256)
	for range 40 {
		p.interval()
	}
	for _, c := range p.cores {
		if c.lingering.Empty() && c.open != c.rest {
			t.Errorf("open %v, rest %v", c.open, c.rest)
		}
	}
	var none partition.Set
	c := p.cores[0]
	c.Fence(p.now)
	for _, a := range c.Actions() {
		if a.Kind == Apply && (a.Open != none || a.Rest != none) {
			t.Errorf("a fenced director keeps open %v, rest %v", a.Open, a.Rest)
		}
	}
}

// A giver has the handshakes under way told twice: when an assignment takes
// buckets from it, and when it has released them. Nobody else does.
func TestGiversTellHandshakes(t *testing.T) {
	p := newPair(256)
	var gives [2][]int // open buckets of a core at each Give
	run := func(intervals int) {
		for range intervals {
			p.interval()
			for i := range p.gives {
				gives[i] = append(gives[i], p.gives[i]...)
				p.gives[i] = nil
			}
		}
	}
	run(400)
	giver, taker := 0, 1
	if p.cores[0].open.Len() != 128 || p.cores[1].open.Len() != 128 {
		t.Fatalf("%d and %d of 256 buckets are open after the start", p.cores[0].open.Len(), p.cores[1].open.Len())
	}
	gives = [2][]int{}
	p.cores[giver].Drain(p.now, true)
	p.act(giver)
	run(400)
	if p.cores[taker].open.Len() != 256 {
		t.Fatalf("the taker has %d of 256 buckets", p.cores[taker].open.Len())
	}
	if g := gives[giver]; len(g) < 2 || g[0] != 128 || g[len(g)-1] != 0 {
		t.Errorf("the giver had %v buckets open when it had handshakes told; want 128 first and 0 at last", g)
	}
	if len(gives[taker]) != 0 {
		t.Errorf("the taker had handshakes told, %v", gives[taker])
	}
}
