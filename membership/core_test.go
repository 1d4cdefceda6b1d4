package membership

import (
	"fmt"
	"testing"
	"time"

	"saru/partition"
)

// calm returns a world in which nothing fails, and in which so many directors
// have been up for some time.
func calm(t *testing.T, directors int, f faults) *world {
	t.Helper()
	w := newWorld(7, directors, f, 0)
	w.after(0, w.watch)
	w.settle(t, 5*time.Second)
	return w
}

// settle lets time pass, after which everything must be served.
func (w *world) settle(t *testing.T, d time.Duration) {
	t.Helper()
	w.run(w.now + d)
	if len(w.bad) == 0 {
		w.alive()
	}
	if len(w.bad) > 0 {
		t.Fatalf("%v\n%s", w.bad, w.dump())
	}
}

// does makes one node's daemon do something.
func (n *simNode) does(f func(c *Core, now time.Duration)) {
	n.input(n.life, func() { f(n.core, n.local()) })
}

func (w *world) shares() (buckets []int) {
	for _, n := range w.nodes {
		open := n.kernel.accepts(w.now)
		buckets = append(buckets, open.Len())
	}
	return buckets
}

func (w *world) want(t *testing.T, what string, shares ...int) {
	t.Helper()
	for i, n := range w.shares() {
		if n != shares[i] {
			t.Fatalf("%s: the nodes accept %v buckets, want %v\n%s", what, w.shares(), shares, w.dump())
		}
	}
}

func TestDrainWeightFreezeAndLeave(t *testing.T) {
	w := calm(t, 3, faults{steady: true})
	d0, d1, d2 := w.nodes[0], w.nodes[1], w.nodes[2]
	d0.does(func(c *Core, now time.Duration) { c.Drain(now, true) })
	w.settle(t, 5*time.Second)
	w.want(t, "drained", 0, 8, 8)
	if s := d0.core.Snapshot(d0.local()); s.State != Draining || !s.Rest.Empty() {
		t.Errorf("a drained director is %v and serves %v", s.State, s.Rest)
	}

	d1.does(func(c *Core, now time.Duration) { c.Freeze(now, true) })
	w.settle(t, time.Second)
	d0.does(func(c *Core, now time.Duration) { c.Drain(now, false) })
	d2.does(func(c *Core, now time.Duration) { c.SetWeight(now, 300) })
	w.settle(t, 2*time.Second)
	w.want(t, "frozen", 0, 8, 8)
	d2.does(func(c *Core, now time.Duration) { c.Freeze(now, false) }) // anywhere
	w.settle(t, 5*time.Second)
	shares := w.shares()
	if shares[0]+shares[1] < 6 || shares[2] < 9 {
		t.Errorf("thawed, with weights 100, 100, 300: %v", shares)
	}

	d2.does(func(c *Core, now time.Duration) { c.Leave(now) })
	w.settle(t, 5*time.Second)
	w.want(t, "left", 8, 8, 0)
	if !d2.core.Gone() {
		t.Error("it has not gone")
	}
	if w.worstGap > gapBound {
		t.Errorf("a move left a bucket without an acceptor for %v", w.worstGap)
	}
}

// A crash under freeze still moves what the dead one had, and nothing else.
func TestFreezeDoesNotStopFailover(t *testing.T) {
	w := calm(t, 3, faults{})
	before := w.nodes[1].kernel.open
	w.nodes[0].does(func(c *Core, now time.Duration) { c.Freeze(now, true) })
	w.settle(t, time.Second)
	w.nodes[2].kill()
	w.settle(t, 2*time.Second)
	if after := w.nodes[1].kernel.open; !after.Contains(before) {
		t.Errorf("buckets %v moved with no need", before.Minus(after))
	}
}

// After a crash all is served again within the longest promise, a heartbeat and
// a transaction.
func TestFailoverTime(t *testing.T) {
	for _, f := range []faults{{}, {fast: true}, {majority: true}} {
		var worst, sum time.Duration
		runs := 10
		if !testing.Short() {
			runs = 40
		}
		w := newWorld(0, 3, f, 0)
		for seed := range uint64(runs) {
			w = newWorld(seed, 3, f, 0)
			w.settle(t, 5*time.Second+w.between(0, w.interval))
			dead := w.nodes[seed%3]
			dead.kill()
			dead.kernel.open, dead.kernel.lease = partition.Set{}, 0
			start := w.now
			for covered := false; !covered && w.now < start+5*time.Second; {
				w.run(w.now + time.Millisecond)
				all := partition.Set{}
				for _, n := range w.nodes {
					all = all.Union(n.kernel.accepts(w.now))
				}
				covered = all == w.all
			}
			worst, sum = max(worst, w.now-start), sum+w.now-start
		}
		t.Logf("lease %v, power cut to the last bucket served: mean %v, worst of %d %v", w.lease, sum/time.Duration(runs), runs, worst)
		if bound := Watch(w.lease) + 25*time.Millisecond; worst > bound {
			t.Errorf("worst %v, want less than %v", worst, bound)
		}
	}
}

// Drained directors serve if there are no others, rather than nobody.
func TestDrainedIsTheLastResort(t *testing.T) {
	w := calm(t, 2, faults{})
	w.nodes[0].does(func(c *Core, now time.Duration) { c.Drain(now, true) })
	w.settle(t, 5*time.Second)
	w.want(t, "one drained", 0, 16)
	w.nodes[1].kill()
	w.settle(t, 2*time.Second)
	w.want(t, "the other dead", 16, 0)
}

// The degraded give their shares away one after another, and keep them when
// all are.
func TestDegradedIsARank(t *testing.T) {
	w := calm(t, 3, faults{steady: true})
	most := 0
	w.after(0, func() {
		var look func()
		look = func() {
			moving := 0
			for _, n := range w.nodes[:2] {
				if n.core.degraded.on && n.core.since == unlisted && !n.core.open.Empty() {
					moving++
				}
			}
			most = max(most, moving)
			w.after(time.Millisecond, look)
		}
		look()
	})
	degrade := func(on bool, nodes ...int) {
		for _, i := range nodes {
			w.nodes[i].does(func(c *Core, now time.Duration) { c.SetDegraded(now, on) })
		}
	}
	before := w.shares()
	degrade(true, 0, 1)
	w.settle(t, 5*time.Second)
	w.want(t, "for a short time", before...)
	w.settle(t, 15*time.Second)
	w.want(t, "two degraded", 0, 0, 16)
	if most > 1 {
		t.Error("two gave their shares away at once")
	}
	degrade(true, 2)
	w.settle(t, 15*time.Second)
	for i, n := range w.shares() {
		if n == 0 {
			t.Errorf("all are degraded, and d%d has nothing: %v", i, w.shares())
		}
	}
	degrade(false, 0, 1, 2)
	w.settle(t, 15*time.Second)
	w.want(t, "all healthy", w.shares()...)
}

func TestFewerPingNodesReached(t *testing.T) {
	w := calm(t, 2, faults{steady: true})
	reach := func(i, nodes int) {
		w.nodes[i].does(func(c *Core, now time.Duration) { c.SetReach(now, nodes) })
	}
	reach(0, 0)
	w.settle(t, 4*time.Second)
	w.want(t, "one reaches no ping node", 0, 16)
	if s := w.nodes[0].core.Snapshot(w.nodes[0].local()); s.State != Degraded || s.Why == "" {
		t.Errorf("it is %v because %q", s.State, s.Why)
	}
	reach(1, 0)
	w.settle(t, 15*time.Second)
	w.want(t, "neither does", 8, 8)
}

// Whom the frames to the shared MAC do not reach lets go at once: the clients'
// packets do not reach it either.
func TestFramesLost(t *testing.T) {
	w := calm(t, 2, faults{})
	for a := range w.nodes {
		w.cut[1][a][0] = true
	}
	w.settle(t, 1500*time.Millisecond)
	w.want(t, "no frames", 0, 16)
	w.cut[1] = [maxSim][maxSim]bool{}
	w.settle(t, 6*time.Second)
	w.want(t, "frames again", 8, 8)
}

// Two directors and a witness: each alone has no majority, and either has one
// with the witness, which was told nothing but the cluster and the share.
func TestMajorityWithWitness(t *testing.T) {
	w := calm(t, 2, faults{majority: true, witnesses: 1})
	w.want(t, "cold start", 8, 8, 0)
	s := w.nodes[1].core.Snapshot(w.nodes[1].local())
	if s.Policy != "majority" || s.Have != 3 || s.Need != 2 {
		t.Errorf("quorum %s, %d of %d", s.Policy, s.Have, s.Need)
	}
	for b := range 3 {
		w.cut[0][0][b], w.cut[1][0][b] = b != 0, b != 0
		w.cut[0][b][0], w.cut[1][b][0] = b != 0, b != 0
	}
	w.settle(t, 2*time.Second)
	w.want(t, "one cut off", 0, 16, 0)
	w.cut = [2][maxSim][maxSim]bool{}
	w.settle(t, 6*time.Second)
	w.want(t, "healed", 8, 8, 0)
	w.nodes[2].kill()
	w.settle(t, 2*time.Second)
	w.want(t, "without the witness", 8, 8, 0)
	w.nodes[0].kill()
	w.run(w.now + 2*time.Second)
	w.want(t, "one of three voters", 0, 0, 0)
}

// Lists of voters that differ in one get on; those that differ in two do not.
func TestVotersDiffer(t *testing.T) {
	core := func(voters ...string) *Core {
		var ids []NodeID
		for _, v := range voters {
			ids = append(ids, ID(v))
		}
		return New(Config{Node: "d0", Incarnation: 1, Cluster: "c", Share: 1, Shape: 7, Buckets: 16, Lease: simLease, Interval: simInterval, Arm: simArm, Voters: ids}, 0)
	}
	for _, c := range []struct {
		a, b []string
		ok   bool
	}{
		{nil, nil, true},
		{nil, []string{"a"}, false},
		{[]string{"a", "b", "c"}, []string{"c", "a", "b"}, true},
		{[]string{"a", "b"}, []string{"a", "b", "c"}, true},
		{[]string{"a", "b", "c"}, []string{"a", "b"}, true},
		{[]string{"a", "b", "c"}, []string{"a", "b", "d"}, false},
		{[]string{"a"}, []string{"a", "b", "c"}, false},
	} {
		var hb Heartbeat
		core(c.b...).compose(&hb)
		if got := core(c.a...).compatible(&hb); got != c.ok {
			t.Errorf("voters %v beside %v: %v, want %v", c.a, c.b, got, c.ok)
		}
	}
}

// Any two majorities of lists that differ in one voter share a voter: the
// arithmetic on which compatible rests.
func TestMajoritiesIntersect(t *testing.T) {
	for n := 1; n < MaxNodes; n++ {
		if need, more := n/2+1, (n+1)/2+1; need+more <= n+1 {
			t.Errorf("%d of %d and %d of %d need not share a voter", need, n, more, n+1)
		}
	}
}

// A newcomer with another share configuration stays out, and stops nobody who
// serves from taking over.
func TestOtherShape(t *testing.T) {
	w := calm(t, 3, faults{})
	w.nodes[0].kill()
	w.settle(t, 2*time.Second)
	w.nodes[0].start()
	w.nodes[0].core.cfg.Shape++
	w.settle(t, 3*time.Second)
	w.want(t, "a newcomer of another shape", 0, 8, 8)
	if s := w.nodes[0].core.Snapshot(w.nodes[0].local()); s.State != Joining || s.Why == "" {
		t.Errorf("it is %v because %q", s.State, s.Why)
	}
	w.nodes[1].kill()
	w.settle(t, 2*time.Second)
	w.want(t, "a holder beside it", 0, 0, 16)
}

// After an even split the senior side keeps and the other closes; afterwards
// both share.
func TestHealedSplit(t *testing.T) {
	w := calm(t, 2, faults{cuts: true})
	w.isolate(w.nodes[0], w.nodes[1], true)
	w.settle(t, time.Minute)
	w.want(t, "split", 16, 16)
	senior := 0
	if w.nodes[1].core.outranks(w.nodes[1].core.peer(ID("d0"))) {
		senior = 1
	}
	w.isolate(w.nodes[0], w.nodes[1], false)
	for range 100 {
		w.run(w.now + time.Millisecond)
		if n := w.shares()[senior]; n < 8 {
			t.Fatalf("the senior side keeps %d buckets: %v", n, w.shares())
		}
	}
	w.settle(t, 5*time.Second)
	w.want(t, "healed", 8, 8)
	if n := w.nodes[0].core.stats; n.Conflicts == 0 || n.ConflictMicros == 0 {
		t.Errorf("the conflict is not counted: %+v", n)
	}
	if w.worst > overlapBound {
		t.Errorf("both accepted for %v", w.worst)
	}
}

// Builds one version apart run together, in all directions.
func TestRollingUpgrade(t *testing.T) {
	w := calm(t, 3, faults{mixed: true, steady: true})
	for i, n := range w.shares() {
		if n < 5 {
			t.Errorf("d%d accepts %d buckets", i, n)
		}
	}
	w.nodes[1].does(func(c *Core, now time.Duration) { c.Drain(now, true) })
	w.settle(t, 5*time.Second)
	w.want(t, "the newer one drained", 8, 0, 8)
}

// A machine that takes a dead one's name serves as soon as the dead one's
// promises have lapsed; one that takes a living one's never does.
func TestSameName(t *testing.T) {
	w := calm(t, 3, faults{clone: true}) // d2 is called d0
	if shares := w.shares(); shares[0]+shares[2] != 8 || shares[1] != 8 || shares[0] != 0 && shares[2] != 0 {
		t.Fatalf("two machines of one name accept %v", shares)
	}
	real, clone := w.nodes[0], w.nodes[2]
	if w.shares()[0] == 0 {
		real, clone = clone, real
	}
	if s := clone.core.Snapshot(clone.local()); s.State != Joining || s.Stats.OwnName == 0 {
		t.Errorf("the clone is %v because %q", s.State, s.Why)
	}
	real.kill()
	w.settle(t, 8*time.Second)
	if n := w.shares()[clone.i]; n != 8 {
		t.Errorf("the clone has %d buckets after the other's death", n)
	}
}

// H4: a director that is not granted anything closes by itself at half its
// lease, and says so.
func TestClosesAtHalfTheLease(t *testing.T) {
	w := calm(t, 2, faults{majority: true}) // no majority of two without both
	n := w.nodes[0]
	w.nodes[1].kill()
	since := n.core.confirmAt
	for !n.core.sure.Empty() && n.local() < since+simLease {
		w.run(w.now + time.Millisecond)
		if n.core.confirmAt != since {
			since = n.core.confirmAt
		}
	}
	if held := n.local() - since; held < simLease/2 || held > simLease/2+10*time.Millisecond {
		t.Errorf("closed %v after the last granted heartbeat, want %v", held, simLease/2)
	}
}

// pair is two Cores that talk to each other over the wire format.
type pair struct {
	cores [2]*Core
	dec   [2]Decoder
	now   time.Duration
	queue [64][]byte
	to    [64]int
	n     int
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

// Shares of the fewest and the most buckets work: assignments travel in parts,
// and every message fits.
func TestFewAndManyBuckets(t *testing.T) {
	for _, buckets := range []int{2, MaxBuckets} {
		w := calm(t, 3, faults{buckets: buckets})
		for i, n := range w.shares() {
			if n < buckets/3 || n > buckets/3+1 {
				t.Errorf("%d buckets: d%d has %d", buckets, i, n)
			}
		}
		w.nodes[1].does(func(c *Core, now time.Duration) { c.SetWeight(now, 300) })
		w.settle(t, 3*time.Second)
		w.nodes[2].kill()
		w.settle(t, 3*time.Second)
		w.nodes[2].start()
		w.settle(t, 5*time.Second)
		if n := w.shares()[1]; n < buckets*3/5 || n > buckets*3/5+1 {
			t.Errorf("%d buckets: three fifths are %d", buckets, n)
		}
	}
}

func TestWatchOutlastsTheLease(t *testing.T) {
	for _, lease := range []time.Duration{60 * time.Millisecond, simLease, 3 * time.Second} {
		slow := time.Duration(float64(lease)/0.99) + lateness
		if fast := time.Duration(float64(Watch(lease)) / 1.01); fast <= slow {
			t.Errorf("lease %v may last %v, and a watcher waits %v", lease, slow, fast)
		}
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
