package membership

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"strings"
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
// of heartbeats, even through others, led from one to the other; or a machine
// was frozen, and one lease has not passed since.

const (
	simLease    = 300 * time.Millisecond
	simInterval = 50 * time.Millisecond
	simArm      = 100 * time.Millisecond
	simBuckets  = 16
	maxSim      = 16
)

type event struct {
	at  time.Duration
	seq int
	do  func()
}

// events is a heap, earliest first.
type events []event

func (e events) less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}

func (e *events) push(x event) {
	*e = append(*e, x)
	q := *e
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.less(i, up) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
}

func (e *events) pop() event {
	q := *e
	x, n := q[0], len(q)-1
	q[0], q[n] = q[n], event{}
	q = q[:n]
	for i := 0; ; {
		least := i
		for _, k := range []int{2*i + 1, 2*i + 2} {
			if k < n && q.less(k, least) {
				least = k
			}
		}
		if least == i {
			break
		}
		q[i], q[least] = q[least], q[i]
		i = least
	}
	*e = q
	return x
}

// A simKernel is one director's kernel: it alone accepts.
type simKernel struct {
	open, rest partition.Set
	lease      time.Duration            // live until, true time
	armed      map[uint64]time.Duration // n -> armed until, true time
	rate       float64                  // of its clock
	frozen     bool
	thawed     time.Duration             // what a frozen machine still accepted ends here
	accounted  time.Duration             // until here last is true
	last       [MaxBuckets]time.Duration // when a bucket was last accepted
}

func (k *simKernel) accepts(now time.Duration) partition.Set {
	if k.lease <= now || k.frozen {
		return partition.Set{}
	}
	return k.open
}

func (k *simKernel) serves(now time.Duration) partition.Set {
	if k.lease <= now || k.frozen {
		return partition.Set{}
	}
	return k.rest
}

// account notes until when buckets were accepted; call it before any change.
func (k *simKernel) account(now time.Duration) {
	if until := min(now, k.lease); until > k.accounted && !k.frozen {
		for b := range k.open.All() {
			k.last[b] = until
		}
	}
	k.accounted = now
}

type simNode struct {
	w       *world
	i       int
	name    string
	witness bool
	core    *Core
	decoder Decoder
	life    int // counts restarts; events of earlier lives are void
	up      bool
	rate    float64
	offset  time.Duration // by which its clock stood still
	stalled time.Duration // until
	inbox   []func()
	todo    []simAction
	nextDue time.Duration
	kernel  simKernel
	leaving bool
	caught  [maxSim]time.Duration // when it last caught up with others
	born    time.Duration
	record  *[]Event
	sent    [][]byte      // its heartbeats, in worlds with recordings
	told    partition.Set // what its events say that it has open
}

// A simAction is an Action with its message as it goes over the wire.
type simAction struct {
	Action
	wire []byte
}

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
	mut      mutant
	cut      [2][maxSim][maxSim]bool // per path
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

func (n *simNode) local() time.Duration {
	return time.Duration(float64(n.w.now)*n.rate) - n.offset
}

// span is the true time that a span of a clock takes.
func span(d time.Duration, rate float64) time.Duration { return time.Duration(float64(d) / rate) }

func (w *world) voters() (ids []NodeID) {
	if !w.f.majority {
		return nil
	}
	for _, n := range w.nodes {
		ids = append(ids, ID(n.name))
	}
	if w.f.newVoters && w.chance(0.5) {
		ids = ids[:len(ids)-1]
	}
	return ids
}

func (n *simNode) start() {
	n.life++
	n.born = n.w.now
	n.up, n.stalled, n.inbox, n.todo, n.leaving, n.told = true, 0, nil, nil, false, partition.Set{}
	k := &n.kernel
	k.account(n.w.now)
	k.open, k.rest, k.lease, k.frozen = partition.Set{}, partition.Set{}, 0, false // H1
	clear(k.armed)
	cfg := Config{
		Node: n.name, Incarnation: n.w.Uint64() | 1, Host: uint64(n.i) + 1, Cluster: "c", Share: 1, Shape: 7, Buckets: n.w.buckets,
		Lease: n.w.lease, Interval: n.w.interval, Arm: n.w.arm, Settle: 10 * time.Millisecond, Weight: 100, Frames: true,
		Voters: n.w.voters(), mutant: n.w.mut,
	}
	if n.witness {
		cfg.Witness, cfg.Shape, cfg.Buckets, cfg.Frames, cfg.Voters = true, 0, 0, false, nil
	}
	n.core = New(cfg, n.local())
	n.core.SetGate(n.local(), n.w.chance(0.9), true)
	n.core.SetReach(n.local(), 1)
	n.w.logf(n, "starts, incarnation %x", n.core.cfg.Incarnation)
	n.nextDue = n.w.now
	life := n.life
	n.w.after(n.w.between(0, n.w.interval), func() { n.tick(life) })
	n.w.after(300*time.Millisecond, func() {
		n.input(life, func() { n.core.SetGate(n.local(), true, true) })
	})
}

func (n *simNode) kill() {
	n.w.logf(n, "killed")
	n.up, n.leaving = false, false
	n.life++
}

// freeze stops the machine, kernel and clocks and all.
func (n *simNode) freeze(d time.Duration) {
	w, k := n.w, &n.kernel
	w.logf(n, "machine frozen for %v", d)
	k.account(w.now)
	k.frozen, n.stalled = true, max(n.stalled, w.now+d)
	life := n.life
	w.after(d, func() {
		k.account(w.now)
		k.frozen = false
		if life != n.life {
			return
		}
		n.offset += time.Duration(float64(d) * n.rate)
		k.lease += d
		for m := range k.armed {
			k.armed[m] += d
		}
		k.thawed = w.now + n.w.lease + lateness
		w.check(n, partition.Set{})
	})
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
	n.nextDue = max(n.nextDue+span(n.w.interval, n.rate), n.w.now)
	n.w.at(n.nextDue, func() { n.tick(life) })
}

func (n *simNode) busy() bool { return n.w.now < n.stalled || len(n.todo) > 0 }

// input is a message or a result that reaches the daemon.
func (n *simNode) input(life int, do func()) {
	if life != n.life {
		return
	}
	if !n.busy() {
		n.drain()
	}
	if n.busy() {
		n.inbox = append(n.inbox, do)
		if len(n.inbox) == 1 {
			n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
		}
		return
	}
	do()
	n.act()
}

func (n *simNode) wake(life int) {
	if life != n.life || len(n.inbox) == 0 {
		return
	}
	if !n.busy() {
		n.drain()
	}
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
	if n.w.f.often {
		p *= 4
	}
	if n.w.f.stalls && n.w.chance(p) {
		d := n.w.between(0, 100*time.Millisecond)
		if n.w.chance(0.3) {
			d = n.w.between(0, 3*time.Second)
		}
		n.stalled = n.w.now + d
		n.w.logf(n, "stalls for %v", d)
	}
}

// note follows the events, which must tell all that opens and closes.
func (n *simNode) note() {
	for _, e := range n.core.Events() {
		switch e.Kind {
		case Opened:
			n.told = n.told.Union(e.Buckets)
		case Closed:
			n.told = n.told.Minus(e.Buckets)
		}
		n.w.logf(n, "says: %v", e)
		if n.record != nil {
			*n.record = append(*n.record, e)
		}
	}
	if n.told != n.core.sure {
		n.w.fail("%s has %s open, and its events tell %s", n.name, n.core.sure, n.told)
	}
	if n.core.stats.EventsLost > 0 {
		n.w.fail("%s lost events", n.name)
	}
}

func (n *simNode) act() {
	n.note()
	for _, a := range n.core.Actions() {
		s := simAction{Action: a}
		if a.Kind == Send {
			s.wire, s.Message = a.Message.Append(nil), nil
			if n.w.f.mixed && n.i == 1 {
				s.wire[1]++
				s.wire = append(s.wire, "what the next version adds"...)
			}
			if len(s.wire) > MaxMessage {
				n.w.fail("message of %d bytes", len(s.wire))
			}
		}
		n.todo = append(n.todo, s)
	}
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
	if n.w.mut&countStalledSilence != 0 && n.core.Next() <= n.local() {
		n.core.Wake(n.local()) // the timer before the socket
		n.act()
		return
	}
	if at := n.core.Next(); at != never {
		n.w.at(time.Duration(float64(at+n.offset)/n.rate)+time.Microsecond, func() {
			if life == n.life && n.core.Next() <= n.local() {
				n.input(life, func() { n.core.Wake(n.local()) })
			}
		})
	}
	if n.leaving && n.core.Gone() {
		n.w.logf(n, "left")
		n.kill()
		n.w.after(n.w.between(10*time.Millisecond, time.Second), n.start)
	}
}

func (n *simNode) perform(life int, a simAction) {
	w, k := n.w, &n.kernel
	jiffies := func() time.Duration { return w.between(0, lateness/2) }
	switch a.Kind {
	case Arm:
		k.armed[a.N] = w.now + span(n.w.arm, k.rate) + jiffies()
		for m, t := range k.armed {
			if t < w.now {
				delete(k.armed, m)
			}
		}
	case Send:
		n.transmit(a)
	case Confirm:
		k.account(w.now)
		was := k.accepts(w.now)
		if w.mut&fullLeaseAtWrite != 0 {
			k.lease = w.now + span(n.w.lease, k.rate) + jiffies()
		} else if k.armed[a.N] >= w.now {
			k.lease = w.now + span(n.w.lease-n.w.arm, k.rate) + jiffies()
		}
		w.check(n, was)
	case Apply:
		n.apply(life, a.Action)
	case Barrier:
		n.barrier(life, a.Action)
	}
}

// fullLeaseAtWrite is an error of the kernel's part, not of the Core's.
const fullLeaseAtWrite mutant = 1 << 40

func (n *simNode) apply(life int, a Action) {
	w, k := n.w, &n.kernel
	d := w.between(200*time.Microsecond, 2*time.Millisecond)
	commits, known := true, true
	if w.f.slowNft {
		if w.chance(0.1) {
			d = w.between(0, 2500*time.Millisecond)
		}
		commits = !w.chance(0.05)
		known = !w.chance(0.05)
	}
	if !a.Rest.Contains(a.Open) {
		w.fail("%s opens %s with rest %s", n.name, a.Open, a.Rest)
	}
	w.after(d, func() {
		if life != n.life {
			return
		}
		if commits {
			w.logf(n, "kernel open %s rest %s", a.Open, a.Rest)
			w.checkBarrier(n, a.Rest.Minus(k.rest))
			k.account(w.now)
			w.checkLinger(n, k.rest.Minus(a.Rest))
			was := k.accepts(w.now)
			k.open, k.rest = a.Open, a.Rest
			w.check(n, was)
		}
		open, rest := k.open, k.rest
		w.after(w.between(0, time.Millisecond), func() {
			n.input(life, func() { n.core.Applied(n.local(), open, rest, known) })
		})
	})
}

// barrier lets the daemon's syncd catch up, or says that another's has.
func (n *simNode) barrier(life int, a Action) {
	w := n.w
	d := w.between(0, 200*time.Millisecond)
	if !w.f.steady && w.chance(0.1) {
		return // never answered
	}
	w.after(d, func() {
		if life != n.life {
			return
		}
		for _, o := range w.nodes {
			if ID(o.name) == a.To && !a.Back {
				n.caught[o.i] = w.now
			}
		}
		n.input(life, func() { n.core.BarrierDone(n.local(), a.N) })
	})
}

// checkBarrier sees that n takes up established flows only with the connections
// of whoever accepted new ones last and still serves them.
func (w *world) checkBarrier(n *simNode, rest partition.Set) {
	if !w.f.steady {
		return
	}
	for b := range rest.All() {
		last := n
		for _, o := range w.nodes {
			o.kernel.account(w.now)
			if o.kernel.last[b] > last.kernel.last[b] {
				last = o
			}
		}
		served := last.kernel.serves(w.now)
		if last != n && served.Has(b) && w.now-n.caught[last.i] > time.Second {
			w.fail("%s serves %d beside %s without its connections", n.name, b, last.name)
		}
	}
}

// checkLinger sees that handshakes which began at the giver can end there.
func (w *world) checkLinger(n *simNode, gone partition.Set) {
	if !w.f.steady {
		return
	}
	for b := range gone.All() {
		if since := w.now - n.kernel.last[b]; since < DefaultLinger*98/100 {
			w.fail("%s serves no established flows of %d, %v after it took new ones", n.name, b, since)
		}
	}
}

func (n *simNode) transmit(a simAction) {
	n.w.recordOf(n, a)
	for _, to := range n.w.nodes {
		if to == n || a.To != 0 && a.To != ID(to.name) {
			continue
		}
		for path := range 2 {
			n.w.carry(path, n, to, a.wire)
			if n.w.chance(n.w.f.dup) {
				n.w.carry(path, n, to, a.wire)
			}
		}
	}
}

// carry takes one datagram (path 0) or frame (path 1) to its receiver.
func (w *world) carry(path int, from, to *simNode, b []byte) {
	if w.cut[path][from.i][to.i] || path == 1 && (from.witness || to.witness) || w.chance(w.f.drop) {
		return
	}
	d := w.between(50*time.Microsecond, 600*time.Microsecond)
	if w.chance(w.f.slow) {
		d = w.between(0, w.arm)
		if w.chance(0.5) {
			d = w.between(0, time.Second)
		}
	}
	w.after(d, func() {
		if !to.up {
			return
		}
		if b[0] == byte(TypeHeartbeat) && d < 10*time.Millisecond {
			e := &w.arrived[from.i][to.i]
			if w.now-e.last > Watch(w.lease)-w.interval {
				e.since = w.now
			}
			e.last = w.now
		}
		if w.now < to.stalled && len(to.inbox) > to.backlog() && w.chance(0.7) {
			return // the socket's buffer is full
		}
		to.hear(path, b)
	})
}

// hear brings a message to a node's daemon.
func (n *simNode) hear(path int, b []byte) {
	n.input(n.life, func() {
		m, err := n.decoder.Decode(b)
		if err != nil {
			n.w.fail("undecodable message: %v", err)
			return
		}
		if path == 1 {
			n.core.Frame(n.local(), m)
		}
		n.core.Receive(n.local(), m)
		n.pay()
	})
}

// connected reports whether heartbeats led from a to b, through any others,
// all along the time in which silence would count.
func (w *world) connected(a, b int, long time.Duration) bool {
	seen := 1 << a
	for todo := []int{a}; len(todo) > 0; todo = todo[1:] {
		u := todo[0]
		for v := range w.nodes {
			e := w.arrived[u][v]
			if seen>>v&1 == 0 && w.now-e.last < Watch(w.lease)-w.interval && w.now-e.since > long {
				seen |= 1 << v
				todo = append(todo, v)
			}
		}
	}
	return seen>>b&1 == 1
}

func (w *world) excused(a, b *simNode) bool {
	if w.now <= a.kernel.thawed || w.now <= b.kernel.thawed {
		return true
	}
	return w.f.cuts && !w.f.majority && !(w.connected(a.i, b.i, w.lease) && w.connected(b.i, a.i, w.lease))
}

// check is called after every change of n's kernel, which accepted was before.
func (w *world) check(n *simNode, was partition.Set) {
	fresh := n.kernel.accepts(w.now).Minus(was)
	if fresh.Empty() {
		return
	}
	for _, o := range w.nodes {
		if o == n {
			continue
		}
		k := &o.kernel
		k.account(w.now)
		both := fresh.Intersect(k.accepts(w.now))
		for b := range fresh.All() {
			if k.last[b] > w.now-w.f.skew {
				both.Add(b)
			}
		}
		switch {
		case both.Empty():
		case w.excused(n, o):
			w.exempt++
		default:
			w.fail("%s and %s both accept %s", n.name, o.name, both)
		}
	}
}

// watch looks at everything from time to time: that an excuse ends when its
// reason does, and in a steady world, that everything is served.
func (w *world) watch() {
	for i, a := range w.nodes {
		for _, b := range w.nodes[:i] {
			both := a.kernel.accepts(w.now).Intersect(b.kernel.accepts(w.now))
			since := &w.overlap[i][b.i]
			switch {
			case both.Empty() || !(w.connected(i, b.i, 0) && w.connected(b.i, i, 0)):
				*since = 0
			case *since == 0:
				*since = w.now
			default:
				w.worst = max(w.worst, w.now-*since)
			}
			if !both.Empty() && !w.excused(a, b) {
				w.fail("%s and %s still both accept %s", a.name, b.name, both)
			}
		}
	}
	if w.f.steady {
		w.watchService()
	}
	if w.f.busy != nil {
		w.look()
	}
	w.after(2*time.Millisecond, w.watch)
}

func (w *world) watchService() {
	var open, rest partition.Set
	for _, n := range w.nodes {
		open, rest = open.Union(n.kernel.accepts(w.now)), rest.Union(n.kernel.serves(w.now))
	}
	if !w.covered {
		w.covered = open == w.all
		return
	}
	if rest != w.all {
		w.fail("established flows of %s are refused by all", w.all.Minus(rest))
	}
	for b := range w.buckets {
		switch {
		case open.Has(b):
			if gap := w.now - w.unserved[b]; w.unserved[b] != 0 && gap > gapBound {
				w.fail("bucket %d was without an acceptor for %v", b, gap)
			}
			w.unserved[b] = 0
		case w.unserved[b] == 0:
			w.unserved[b] = w.now
		default:
			w.worstGap = max(w.worstGap, w.now-w.unserved[b])
		}
	}
}

func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && len(w.bad) == 0 {
		e := w.queue.pop()
		w.now = e.at
		e.do()
	}
	w.now = until
}

// quiet ends all trouble.
func (w *world) quiet() {
	w.f.drop, w.f.dup, w.f.slow = 0, 0, 0
	w.f.stalls, w.f.slowNft = false, false
	w.cut = [2][maxSim][maxSim]bool{}
	for _, n := range w.nodes {
		n.input(n.life, func() {
			n.core.Drain(n.local(), false)
			n.core.Freeze(n.local(), false)
			n.core.SetDegraded(n.local(), false)
		})
	}
}

// trouble makes a fault from time to time until end.
func (w *world) trouble(end time.Duration) {
	if w.now >= end {
		w.quiet()
		return
	}
	n := w.nodes[w.IntN(len(w.nodes))]
	life := n.life
	fault := w.IntN(9)
	if w.f.amnesia && w.chance(0.3) {
		w.forget(n)
		fault = -1
	}
	switch fault {
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
			on := w.chance(0.5)
			w.logf(n, "drain %v", on)
			n.input(life, func() { n.core.Drain(n.local(), on) })
		}
	case 2:
		if w.f.flush {
			w.flush(n)
		}
	case 3, 4:
		w.cutSomething(n)
	case 5:
		if w.f.drain && n.up && !n.leaving && w.chance(0.3) && (!w.f.steady || w.spares(n)) {
			w.logf(n, "leaves")
			n.input(life, func() { n.leaving = true; n.core.Leave(n.local()) })
		}
	case 6:
		if w.f.freeze && n.up && !n.kernel.frozen {
			n.freeze(w.between(0, 2*time.Second))
		}
	case 7, 8:
		if w.f.moves && n.up {
			n.input(life, func() { w.move(n) })
		}
	}
	w.after(w.between(50*time.Millisecond, 700*time.Millisecond), func() { w.trouble(end) })
}

// isolate cuts a off from b, or heals that.
func (w *world) isolate(a, b *simNode, on bool) {
	for p := range w.cut {
		w.cut[p][a.i][b.i], w.cut[p][b.i][a.i] = on, on
	}
}

// forget cuts a holder off from another for long, then from all, hangs it, and
// restarts a voter that promised it something at that moment.
func (w *world) forget(holder *simNode) {
	k := len(w.nodes)
	taker := w.nodes[(holder.i+1+w.IntN(k-1))%k]
	voter := w.nodes[(holder.i+1+w.IntN(k-1))%k]
	w.logf(holder, "is cut from %s, then %s forgets it", taker.name, voter.name)
	w.isolate(holder, taker, true)
	w.after(w.between(400*time.Millisecond, 600*time.Millisecond), func() {
		holder.stalled = max(holder.stalled, w.now+w.between(0, time.Second))
		for _, o := range w.nodes {
			w.isolate(holder, o, true)
		}
		if voter != taker && voter.up && w.now < troubleEnds {
			voter.kill()
			w.after(w.between(time.Millisecond, 5*time.Millisecond), voter.start)
		}
	})
	w.after(w.between(time.Second, 2*time.Second), func() {
		for _, o := range w.nodes {
			w.isolate(holder, o, false)
		}
	})
}

func (w *world) move(n *simNode) {
	switch on := w.chance(0.4); w.IntN(3) {
	case 0:
		n.core.SetWeight(n.local(), uint16(1+w.IntN(200)))
	case 1:
		n.core.SetDegraded(n.local(), on)
	case 2:
		n.core.Freeze(n.local(), on)
		w.logf(n, "freeze %v", on)
	}
}

// spares reports whether all others are there, so that n may go in peace.
func (w *world) spares(n *simNode) bool {
	for _, o := range w.nodes {
		if s := o.core.state; o != n && (!o.up || o.leaving || s != Ready && s != Draining) {
			return false
		}
	}
	return !n.witness
}

func (w *world) flush(n *simNode) {
	w.logf(n, "flushed")
	k := &n.kernel
	k.account(w.now)
	k.open, k.rest, k.lease = partition.Set{}, partition.Set{}, 0
	clear(k.armed)
	life := n.life
	w.after(w.between(0, time.Second), func() {
		if life == n.life && !n.core.applying {
			k.account(w.now)
			k.open, k.rest = partition.Set{}, partition.Set{}
			n.input(life, func() { n.core.Lost(n.local()) })
		}
	})
}

func (w *world) cutSomething(n *simNode) {
	switch {
	case w.f.halves:
		if w.cut != [2][maxSim][maxSim]bool{} {
			return
		}
		side := w.IntN(1<<len(w.nodes)-2) + 1
		for a := range w.nodes {
			for b := range w.nodes {
				if side>>a&1 != side>>b&1 {
					w.cut[0][a][b], w.cut[1][a][b] = true, true
				}
			}
		}
		w.logf(n, "split %b", side)
		w.after(w.between(500*time.Millisecond, 2*time.Second), func() {
			w.logf(n, "heals")
			w.cut = [2][maxSim][maxSim]bool{}
		})
	case w.f.poison:
		if w.cut != [2][maxSim][maxSim]bool{} {
			return
		}
		w.logf(n, "gets no frames")
		for a := range w.nodes {
			w.cut[1][a][n.i] = true
		}
		w.after(w.between(500*time.Millisecond, 3*time.Second), func() { w.cut = [2][maxSim][maxSim]bool{} })
	case w.f.cuts || w.f.oneCut:
		if w.f.oneCut {
			w.cut = [2][maxSim][maxSim]bool{}
		}
		a := n.i
		b := (a + 1 + w.IntN(len(w.nodes)-1)) % len(w.nodes)
		both, path := w.chance(0.5), w.IntN(4)
		set := func(on bool) {
			for p := range w.cut {
				if path > 1 || path == p {
					w.cut[p][a][b] = on
					w.cut[p][b][a] = both && on || !both && w.cut[p][b][a]
				}
			}
		}
		set(true)
		w.logf(w.nodes[a], "cut to %s, both %v, path %d", w.nodes[b].name, both, path)
		w.after(w.between(0, 3*time.Second), func() { set(false) })
	}
}

// alive checks that every bucket has an acceptor.
func (w *world) alive() {
	var all partition.Set
	for _, n := range w.nodes {
		all = all.Union(n.kernel.accepts(w.now))
	}
	if all != w.all {
		w.fail("nobody accepts %s", w.all.Minus(all))
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
	for _, n := range w.nodes {
		if !n.up || !w.chance(0.8) {
			continue
		}
		a := &Assignment{Header: w.nodes[0].core.head(), Epoch: e, Shape: 7, Buckets: w.buckets, Owner: make([]uint8, w.buckets)}
		a.From = 1
		for _, n := range w.nodes {
			a.Seats = append(a.Seats, Seat{ID(n.name), n.core.cfg.Incarnation, Epoch{Term: 1}, 100})
		}
		// Not even to all the same.
		for b := range a.Owner {
			a.Owner[b] = uint8(w.IntN(len(a.Seats)))
		}
		a.Hash = a.contentHash()
		life := n.life
		w.after(w.between(0, 20*time.Millisecond), func() {
			n.input(life, func() { n.core.Receive(n.local(), a) })
		})
	}
	d := w.between(0, 30*time.Millisecond)
	if w.chance(0.2) {
		d = w.between(0, 500*time.Millisecond)
	}
	w.after(d, func() { w.adversary(end, e) })
}

func (w *world) dump() string {
	var b strings.Builder
	for _, line := range w.trace[max(0, len(w.trace)-40):] {
		fmt.Fprintln(&b, line)
	}
	for _, n := range w.nodes {
		c := n.core
		if c == nil {
			continue
		}
		e, _ := c.epoch()
		fmt.Fprintf(&b, "%s up %v %v (%s) master %s epoch %v kernel open %s rest %s lease %v; core open %s sure %s rest %s mine %s want %s taking %s lingering %s closeReq %s closeAll %v unsure %v applying %v confirmed %d of %d frozen %v\n",
			n.name, n.up, c.state, c.why(), c.Master(), e, n.kernel.open, n.kernel.rest, n.kernel.lease > w.now,
			c.open, c.sure, c.rest, c.mine, c.wants(), c.taking, c.lingering, c.closeReq, c.closeAll, c.unsure, c.applying, c.confirmed, c.n, c.Frozen())
		for _, p := range c.peers {
			fmt.Fprintf(&b, "   %s inc %x heard %v missed %d deaf %v epoch %v state %v open %s rest %s lists %d\n", p.hb.Name, p.inc, p.heard, p.missed, c.deaf(p), p.hb.Epoch, p.hb.State, p.hb.Open, p.hb.Rest, len(p.hb.Heard))
		}
		fmt.Fprintf(&b, "   %+v\n", c.stats)
	}
	return b.String()
}
