package membership

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/partition"
)

// The simulation runs real Cores against a world of its own: kernels with
// drifting clocks and late timers, transactions that block, fail or commit and
// then report failure, flushed rulesets, daemons stopped between any two
// actions, killed and restarted, and a network that drops, delays, doubles and
// cuts one way. Two kernels that accept one bucket at once fail it, unless the
// exception that PROTOCOL.md states for lan holds: no way of heartbeats, even
// through others, led from one to the other.

const (
	simLease    = 300 * time.Millisecond
	simInterval = 50 * time.Millisecond
	simArm      = 100 * time.Millisecond
	simBuckets  = 16
)

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// A simKernel is one director's kernel: it alone accepts.
type simKernel struct {
	open  partition.Set
	lease time.Duration            // live until, true time
	armed map[uint64]time.Duration // n -> armed until, true time
}

type simNode struct {
	w       *world
	i       int
	name    string
	core    *Core
	life    int // counts restarts; events of earlier lives are void
	up      bool
	rate    float64
	stalled time.Duration // until
	inbox   []func()
	todo    []Action
	nextDue time.Duration
	kernel  simKernel
	leaving bool
}

type faults struct {
	drop, dup, slow       float64
	stalls, kills, cuts   bool
	slowNft, flush, drain bool
	oneCut                bool // never more than one pair of nodes is cut
	adversary             bool // a master that assigns at random, often
}

type world struct {
	*rand.Rand
	now     time.Duration
	queue   events
	seq     int
	nodes   []*simNode
	f       faults
	mut     mutant
	cut     [8][8]bool
	arrived [8][8]struct{ last, since time.Duration }
	bad     []string
	exempt  int
	trace   []string
}

func (w *world) at(t time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{max(t, w.now), w.seq, do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+d, do) }

func (w *world) chance(p float64) bool { return w.Float64() < p }

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.Float64()*float64(b-a))
}

func (w *world) logf(n *simNode, format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.1fms %s %s", float64(w.now)/1e6, n.name, fmt.Sprintf(format, args...)))
	if len(w.trace) > 4000 {
		w.trace = w.trace[2000:]
	}
}

func newWorld(seed uint64, nodes int, f faults, mut mutant) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), f: f, mut: mut}
	for i := range nodes {
		n := &simNode{w: w, i: i, name: fmt.Sprintf("d%d", i), rate: 1 + (w.Float64()*2-1)/100}
		n.kernel.armed = map[uint64]time.Duration{}
		w.nodes = append(w.nodes, n)
		w.at(w.between(0, time.Second), n.start)
	}
	return w
}

func (n *simNode) local() time.Duration { return time.Duration(float64(n.w.now) * n.rate) }

// true time of a span of the node's clocks
func (n *simNode) span(d time.Duration) time.Duration { return time.Duration(float64(d) / n.rate) }

func (n *simNode) start() {
	n.life++
	n.up, n.stalled, n.inbox, n.todo, n.leaving = true, 0, nil, nil, false
	n.kernel.open, n.kernel.lease = partition.Set{}, 0 // H1
	clear(n.kernel.armed)
	n.core = New(Config{
		Node: n.name, Incarnation: n.w.Uint64() | 1, Cluster: "c", Share: 1, Shape: 7, Buckets: simBuckets,
		Lease: simLease, Interval: simInterval, Arm: simArm, Settle: 10 * time.Millisecond, Weight: 100, mutant: n.w.mut,
	}, n.local())
	n.core.SetGate(n.local(), n.w.chance(0.9), true)
	n.w.logf(n, "starts, incarnation %x", n.core.cfg.Incarnation)
	n.nextDue = n.w.now
	life := n.life
	n.w.after(n.w.between(0, simInterval), func() { n.tick(life) })
	n.w.after(300*time.Millisecond, func() {
		n.input(life, func() { n.core.SetGate(n.local(), true, true) })
	})
}

func (n *simNode) kill() {
	n.w.logf(n, "killed")
	n.up = false
	n.life++
}

// tick is the timer: due every interval, run when the daemon runs.
func (n *simNode) tick(life int) {
	if life != n.life {
		return
	}
	if n.busy() {
		n.w.at(max(n.stalled, n.w.now+100*time.Microsecond), func() { n.tick(life) })
		return
	}
	if n.w.mut&countStalledSilence == 0 {
		n.drain()
	}
	if n.busy() {
		n.w.after(100*time.Microsecond, func() { n.tick(life) })
		return
	}
	n.maybeStall(0.003)
	if n.busy() {
		n.w.at(n.stalled, func() { n.tick(life) })
		return
	}
	n.core.Tick(n.local())
	n.act()
	n.nextDue = max(n.nextDue+n.span(simInterval), n.w.now)
	n.w.at(n.nextDue, func() { n.tick(life) })
}

func (n *simNode) busy() bool { return n.w.now < n.stalled || len(n.todo) > 0 }

// input is a message or a result that reaches the daemon.
func (n *simNode) input(life int, do func()) {
	if life != n.life {
		return
	}
	if n.busy() {
		n.inbox = append(n.inbox, do)
		if len(n.inbox) == 1 {
			n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
		}
		return
	}
	n.drain()
	if n.busy() {
		n.inbox = append(n.inbox, do)
		n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
		return
	}
	do()
	n.act()
}

func (n *simNode) wake(life int) {
	if life != n.life || len(n.inbox) == 0 {
		return
	}
	if n.busy() {
		n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
		return
	}
	n.drain()
	if len(n.inbox) > 0 {
		n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
	}
}

func (n *simNode) drain() {
	for len(n.inbox) > 0 && !n.busy() {
		do := n.inbox[0]
		n.inbox = n.inbox[1:]
		do()
		n.act()
	}
}

func (n *simNode) maybeStall(p float64) {
	if n.w.f.stalls && n.w.chance(p) {
		d := n.w.between(0, 100*time.Millisecond)
		if n.w.chance(0.3) {
			d = n.w.between(0, 3*time.Second)
		}
		n.stalled = n.w.now + d
		n.w.logf(n, "stalls for %v", d)
	}
}

func (n *simNode) act() {
	n.todo = append(n.todo, n.core.Actions()...)
	n.work(n.life)
}

func (n *simNode) work(life int) {
	if life != n.life {
		return
	}
	for len(n.todo) > 0 {
		if n.w.now < n.stalled {
			n.w.at(n.stalled, func() { n.work(life) })
			return
		}
		n.maybeStall(0.0007)
		if n.w.now < n.stalled {
			continue
		}
		a := n.todo[0]
		n.todo = n.todo[1:]
		n.perform(life, a)
	}
	n.todo = nil
	if at := n.core.Next(); at != never {
		n.w.at(time.Duration(float64(at)/n.rate)+time.Microsecond, func() {
			n.input(life, func() { n.core.Wake(n.local()) })
		})
	}
	if n.leaving && n.core.Gone() {
		n.w.logf(n, "left")
		n.kill()
		n.w.after(n.w.between(10*time.Millisecond, time.Second), n.start)
	}
}

func (n *simNode) perform(life int, a Action) {
	k := &n.kernel
	jiffies := func() time.Duration { return n.w.between(0, lateness/2) }
	switch a.Kind {
	case Arm:
		k.armed[a.N] = n.w.now + n.span(simArm+jiffies())
		for m, t := range k.armed {
			if t < n.w.now {
				delete(k.armed, m)
			}
		}
	case Send:
		n.transmit(a)
	case Confirm:
		if n.w.mut&fullLeaseAtWrite != 0 {
			k.lease = n.w.now + n.span(simLease+jiffies())
		} else if k.armed[a.N] >= n.w.now {
			k.lease = n.w.now + n.span(simLease-simArm+jiffies())
		}
		n.w.check(n)
	case Apply:
		n.apply(life, a)
	}
}

// fullLeaseAtWrite is an error of the kernel's part, not of the Core's.
const fullLeaseAtWrite mutant = 1 << 40

func (n *simNode) apply(life int, a Action) {
	d := n.w.between(200*time.Microsecond, 2*time.Millisecond)
	if n.w.f.slowNft && n.w.chance(0.1) {
		d = n.w.between(0, 2500*time.Millisecond)
	}
	commits, known := true, true
	if n.w.f.slowNft {
		commits = !n.w.chance(0.05)
		known = !n.w.chance(0.05)
	}
	power := n.life
	n.w.after(d, func() {
		if power != n.life {
			return
		}
		if commits {
			n.w.logf(n, "kernel open %s", a.Open)
			n.kernel.open = a.Open
			n.w.check(n)
		}
		open := n.kernel.open
		n.w.after(n.w.between(0, time.Millisecond), func() {
			n.input(life, func() { n.core.Applied(n.local(), open, known) })
		})
	})
}

func (n *simNode) transmit(a Action) {
	b := a.Message.Append(nil)
	if len(b) > MaxMessage {
		n.w.bad = append(n.w.bad, fmt.Sprintf("message of %d bytes", len(b)))
	}
	for _, to := range n.w.nodes {
		if to == n || a.To != 0 && a.To != ID(to.name) {
			continue
		}
		for range 2 { // two paths
			n.w.carry(n, to, b)
			if n.w.chance(n.w.f.dup) {
				n.w.carry(n, to, b)
			}
		}
	}
}

func (w *world) carry(from, to *simNode, b []byte) {
	if w.cut[from.i][to.i] || w.chance(w.f.drop) {
		return
	}
	d := w.between(50*time.Microsecond, 600*time.Microsecond)
	if w.chance(w.f.slow) {
		d = w.between(0, time.Second)
	}
	w.after(d, func() {
		if !to.up {
			return
		}
		m, err := Decode(b)
		if err != nil {
			w.bad = append(w.bad, "undecodable message: "+err.Error())
			return
		}
		if _, ok := m.(*Heartbeat); ok && d < 10*time.Millisecond {
			e := &w.arrived[from.i][to.i]
			if w.now-e.last > Watch(simLease)-simInterval {
				e.since = w.now
			}
			e.last = w.now
		}
		if w.now < to.stalled && len(to.inbox) > 6 && w.chance(0.7) {
			return // the socket's buffer is full
		}
		life := to.life
		to.input(life, func() { to.core.Receive(to.local(), m) })
	})
}

// connected reports whether heartbeats led from a to b, through any others,
// all along the time in which silence would count.
func (w *world) connected(a, b int) bool {
	seen := 1 << a
	for todo := []int{a}; len(todo) > 0; todo = todo[1:] {
		u := todo[0]
		for v := range w.nodes {
			e := w.arrived[u][v]
			if seen>>v&1 == 0 && w.now-e.last < Watch(simLease)-simInterval && w.now-e.since > simLease {
				seen |= 1 << v
				todo = append(todo, v)
			}
		}
	}
	return seen>>b&1 == 1
}

func (w *world) check(n *simNode) {
	if n.kernel.lease <= w.now {
		return
	}
	for _, o := range w.nodes {
		if o == n || o.kernel.lease <= w.now {
			continue
		}
		both := n.kernel.open.Intersect(o.kernel.open)
		if both.Empty() {
			continue
		}
		if w.f.cuts && !(w.connected(n.i, o.i) && w.connected(o.i, n.i)) {
			w.exempt++
			continue
		}
		w.bad = append(w.bad, fmt.Sprintf("%v: %s and %s both accept %s", w.now, n.name, o.name, both))
	}
}

func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && len(w.bad) == 0 {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = until
}

// trouble makes a fault from time to time until end.
func (w *world) trouble(end time.Duration) {
	if w.now >= end {
		w.f.drop, w.f.dup, w.f.slow = 0, 0, 0
		w.f.stalls, w.f.slowNft = false, false
		w.cut = [8][8]bool{}
		return
	}
	n := w.nodes[w.IntN(len(w.nodes))]
	switch w.IntN(6) {
	case 0:
		if w.f.kills && n.up {
			n.kill()
			back := w.between(time.Millisecond, 1500*time.Millisecond)
			if w.chance(0.5) {
				back = w.between(time.Millisecond, 20*time.Millisecond)
			}
			w.after(back, n.start)
		}
	case 1:
		if w.f.drain && n.up {
			on, life := w.chance(0.5), n.life
			n.input(life, func() { n.core.Drain(n.local(), on) })
		}
	case 2:
		if w.f.flush {
			w.logf(n, "flushed")
			n.kernel.open, n.kernel.lease = partition.Set{}, 0
			clear(n.kernel.armed)
			life := n.life
			w.after(w.between(0, time.Second), func() {
				if life == n.life && !n.core.applying {
					n.kernel.open = partition.Set{}
					n.input(life, func() { n.core.Lost(n.local()) })
				}
			})
		}
	case 3, 4:
		if w.f.oneCut {
			w.cut = [8][8]bool{}
		}
		if w.f.cuts || w.f.oneCut {
			a, b := w.IntN(len(w.nodes)), w.IntN(len(w.nodes))
			both := w.chance(0.5)
			w.cut[a][b] = true
			w.cut[b][a] = w.cut[b][a] || both
			w.logf(w.nodes[a], "cut to %s, both %v", w.nodes[b].name, both)
			w.after(w.between(0, 3*time.Second), func() { w.cut[a][b], w.cut[b][a] = false, false })
		}
	case 5:
		if w.f.drain && n.up && !n.leaving && w.chance(0.3) {
			life := n.life
			n.input(life, func() { n.leaving = true; n.core.Leave(n.local()) })
		}
	}
	w.after(w.between(50*time.Millisecond, 700*time.Millisecond), func() { w.trouble(end) })
}

// alive checks that every bucket has exactly one acceptor.
func (w *world) alive() {
	var all partition.Set
	for _, n := range w.nodes {
		if n.kernel.lease > w.now {
			all = all.Union(n.kernel.open)
		}
	}
	if full := partition.FullSet(simBuckets); all != full {
		w.bad = append(w.bad, fmt.Sprintf("%v: nobody accepts %s", w.now, full.Minus(all)))
	}
}

// adversary hands out assignments of its own, each to some of the nodes.
func (w *world) adversary(end time.Duration, e Epoch) {
	if w.now >= end {
		return
	}
	e.Term += w.Uint32N(2)
	for _, n := range w.nodes {
		own, _ := n.core.epoch()
		e.Term = max(e.Term, own.Term)
	}
	e.Counter, e.Issuer = e.Counter+1, 99
	a := &Assignment{Header: w.nodes[0].core.head(), Epoch: e, Shape: 7, Owner: make([]uint8, simBuckets)}
	a.From = 1
	for _, n := range w.nodes {
		a.Seats = append(a.Seats, Seat{ID(n.name), n.core.cfg.Incarnation, Epoch{Term: 1}, 100})
	}
	for b := range a.Owner {
		a.Owner[b] = uint8(w.IntN(len(a.Seats)))
	}
	a.Hash = a.contentHash()
	for _, n := range w.nodes {
		if n.up && w.chance(0.8) {
			life := n.life
			w.after(w.between(0, 20*time.Millisecond), func() {
				n.input(life, func() { n.core.Receive(n.local(), a) })
			})
		}
	}
	d := w.between(0, 30*time.Millisecond)
	if w.chance(0.2) {
		d = w.between(0, 500*time.Millisecond)
	}
	w.after(d, func() { w.adversary(end, e) })
}

func simulate(seed uint64, nodes int, f faults, mut mutant) *world {
	w := newWorld(seed, nodes, f, mut)
	const end = 15 * time.Second
	w.after(1500*time.Millisecond, func() { w.trouble(end) })
	if f.adversary {
		w.after(1500*time.Millisecond, func() { w.adversary(end, Epoch{}) })
	}
	w.run(end + 4*time.Second)
	if len(w.bad) == 0 {
		for _, n := range w.nodes {
			if n.up {
				n.core.Drain(n.local(), false)
			}
		}
		w.run(end + 6*time.Second)
		if len(w.bad) == 0 {
			w.alive()
		}
	}
	return w
}

var profiles = map[string]faults{
	"lossy":  {drop: 0.1, dup: 0.05, slow: 0.02, stalls: true, kills: true, slowNft: true, flush: true, drain: true},
	"calm":   {kills: true, drain: true},
	"cuts":   {drop: 0.05, dup: 0.05, slow: 0.02, stalls: true, kills: true, cuts: true, drain: true},
	"nft":    {slowNft: true, flush: true, stalls: true},
	"master": {stalls: true, kills: true, drop: 0.2, slow: 0.1, adversary: true, drain: true},
	"mcuts":  {stalls: true, kills: true, cuts: true, slow: 0.1, adversary: true},
	"onecut": {oneCut: true, drop: 0.02, slow: 0.02, adversary: true},
	"frozen": {stalls: true, kills: true, drop: 0.02},
}

func seeds(t *testing.T, short int) int {
	if s := os.Getenv("SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("SEEDS=%q is not a number", s)
		}
		return n
	}
	return short
}

func TestNeverTwoAcceptors(t *testing.T) {
	for name, f := range profiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exempt := 0
			for seed := range uint64(seeds(t, 3)) {
				w := simulate(seed, 3+int(seed%3), f, 0)
				exempt += w.exempt
				if len(w.bad) > 0 {
					t.Fatalf("seed %d: %s\n%s", seed, strings.Join(w.bad, "\n"), strings.Join(w.trace[max(0, len(w.trace)-20):], "\n")+"\n"+w.dump())
				}
			}
			t.Logf("%d times two acceptors under the stated exception", exempt)
		})
	}
}

func TestMutantsAreCaught(t *testing.T) {
	for name, mut := range map[string]mutant{
		"no VOID": noVoid, "no silence after restart": noSilence, "taker does not wait": takerDoesNotWait,
		"full lease at write": fullLeaseAtWrite, "silence counted while stalled": countStalledSilence,
		"refused taken for absent": refusedIsAbsent, "release before the commit": releaseBeforeCommit,
		"ineligible taken for free": ineligibleIsFree,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(max(40, seeds(t, 0))) {
				for _, p := range []string{"master", "lossy", "mcuts", "frozen"} {
					w := simulate(seed, 3+int(seed%3), profiles[p], mut)
					for _, b := range w.bad {
						if strings.Contains(b, "both accept") {
							t.Logf("caught by %s, seed %d: %s", p, seed, b)
							return
						}
					}
				}
			}
			t.Error("the simulation does not see this error")
		})
	}
}

func (w *world) dump() string {
	var b strings.Builder
	for _, n := range w.nodes {
		c := n.core
		e, _ := c.epoch()
		fmt.Fprintf(&b, "%s up %v %v master %s epoch %v kernel %s lease %v core open %s sure %s mine %s want %s closeReq %s closeAll %v unsure %v applying %v confirmed %d of %d foreign %v\n",
			n.name, n.up, c.state, c.Master(), e, n.kernel.open, n.kernel.lease > w.now, c.open, c.sure, c.mine, c.wants(), c.closeReq, c.closeAll, c.unsure, c.applying, c.confirmed, c.n, c.foreign())
		for _, p := range c.heardPeers() {
			fmt.Fprintf(&b, "   hears %s missed %d deaf %v epoch %v state %v lists %d\n", p.hb.Name, p.missed, c.deaf(p), p.hb.Epoch, p.hb.State, len(p.hb.Heard))
		}
		fmt.Fprintf(&b, "   %+v\n", c.stats)
	}
	return b.String()
}
