package membership

import (
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
