package membership

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"time"

	"saru/partition"
)

// The simulation runs real Cores against a world of its own, in virtual time
// and from one seed: kernels with drifting clocks and late timers,
// transactions that block, fail or commit and then report failure, flushed
// rulesets, daemons stopped between any two actions, killed and restarted,
// machines frozen, and a network that drops, delays, reorders, doubles and
// cuts, per path and direction.
//
// Clients' frames are adversarial: a frame reaches any two directors up to
// skew apart. So two kernels may not accept a bucket within skew of each
// other, unless an exception that PROTOCOL.md states holds: under lan, no way
// of heartbeats, even through others, led from one to the other when they began,
// and they do not hear each other yet; or a machine was frozen, and one lease
// has not passed since.

const (
	simLease    = 300 * time.Millisecond
	simInterval = 50 * time.Millisecond
	simArm      = 100 * time.Millisecond
	simBuckets  = 16
	maxSim      = 16
)

type faults struct {
	drop, dup, slow       float64
	skew                  time.Duration // of a client's frame, between two directors
	stalls, kills, cuts   bool
	slowNft, flush, drain bool
	often                 bool // stalls
	fast                  bool // leases of 60 ms
	moves                 bool // weights, degradations, freezes
	freeze                bool // of machines
	oneCut                bool // never more than one pair of nodes is cut
	halves                bool // the LAN splits in two and heals, with nothing else
	poison                bool // frames to one node are lost
	adversary             bool // a master that assigns at random, often
	majority              bool
	witnesses             int
	newVoters             bool  // restarted nodes know one voter more, or one less
	amnesia               bool  // voters are restarted just when a holder is cut off
	mixed                 bool  // the second node speaks the next version
	clone                 bool  // another machine uses the first one's name
	busy                  *load // machines too slow for their work
	buckets               int   // 0: simBuckets
	nodes                 int   // 0: 2 to 5, by the seed
	recorded              bool  // recorded heartbeats are sent again to restarted nodes
	steady                bool  // nothing fails: no established flow may notice a move
}

type world struct {
	*rand.Rand
	lease    time.Duration
	interval time.Duration
	arm      time.Duration
	buckets  int
	all      partition.Set
	now      time.Duration
	queue    events
	seq      int
	nodes    []*simNode
	f        faults
	voting   []NodeID // what the nodes that start are told of voters, if not all
	mut      mutant
	cut      [2][maxSim][maxSim]bool                // per path
	lose     func(from, to *simNode, b []byte) bool // nil: nothing more is lost
	arrived  [maxSim][maxSim]struct{ last, since time.Duration }
	bad      []string
	exempt   int
	overlap  [maxSim][maxSim]time.Duration // since when two accept although they hear each other
	worst    time.Duration
	unserved [MaxBuckets]time.Duration // since when nobody accepts a bucket, in a steady world
	covered  bool
	worstGap time.Duration
	trace    []string
	tally    tallies
}

func (w *world) at(t time.Duration, do func()) {
	w.seq++
	w.queue.push(event{max(t, w.now), w.seq, do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+d, do) }

func (w *world) chance(p float64) bool { return p > 0 && w.Float64() < p }

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.Float64()*float64(b-a))
}

func (w *world) fail(format string, args ...any) {
	if len(w.bad) < 8 {
		w.bad = append(w.bad, fmt.Sprintf("%9.1fms ", float64(w.now)/1e6)+fmt.Sprintf(format, args...))
	}
}

func (w *world) logf(n *simNode, format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.1fms %s %s", float64(w.now)/1e6, n.name, fmt.Sprintf(format, args...)))
	if len(w.trace) > 400 {
		w.trace = append(w.trace[:0], w.trace[200:]...)
	}
}

func newWorld(seed uint64, nodes int, f faults, mut mutant) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), f: f, mut: mut}
	w.lease, w.interval, w.arm = simLease, simInterval, simArm
	if f.fast {
		w.lease, w.interval, w.arm = simLease/5, simInterval/5, simArm/5
	}
	w.buckets = cmp.Or(f.buckets, simBuckets)
	w.all = partition.FullSet(w.buckets)
	for i := range nodes + f.witnesses {
		n := &simNode{w: w, i: i, name: fmt.Sprintf("d%d", i), rate: w.drift(), witness: i >= nodes}
		n.kernel.armed, n.kernel.rate = map[uint64]time.Duration{}, w.drift()
		for b := range n.kernel.last {
			n.kernel.last[b] = -time.Hour
		}
		w.nodes = append(w.nodes, n)
		w.at(w.between(0, time.Second), n.start)
	}
	if f.clone {
		w.nodes[len(w.nodes)-1].name = "d0"
	}
	return w
}

// drift is a clock's rate: within 1 %.
func (w *world) drift() float64 { return 1 + (w.Float64()*2-1)/100 }

func (w *world) voters() (ids []NodeID) {
	if !w.f.majority || w.voting != nil {
		return w.voting
	}
	for _, n := range w.nodes {
		ids = append(ids, ID(n.name))
	}
	if w.f.newVoters && w.chance(0.5) {
		ids = ids[:len(ids)-1]
	}
	return ids
}

func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && len(w.bad) == 0 {
		e := w.queue.pop()
		w.now = e.at
		e.do()
	}
	w.now = until
}
