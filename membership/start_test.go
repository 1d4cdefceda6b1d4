package membership

import (
	"testing"
	"time"

	"saru/partition"
)

// startBound is for how long a cluster of which nothing is left may serve
// nobody: the silence of those who start, a join, the master's assignment.
const startBound = 3 * simLease

// served returns how long it takes until all is served.
func (w *world) served(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	for start := w.now; ; w.run(w.now + time.Millisecond) {
		var all partition.Set
		for _, n := range w.nodes {
			all = all.Union(n.kernel.accepts(w.now))
		}
		switch {
		case len(w.bad) > 0 || w.now-start > within:
			t.Fatalf("not all is served after %v: %v %v\n%s", w.now-start, w.shares(), w.bad, w.dump())
		case all == w.all:
			return w.now - start
		}
	}
}

// All start at the same moment, as after a power failure of the whole site:
// nobody waits for anybody who serves.
func TestColdStartOfEverything(t *testing.T) {
	for name, f := range map[string]faults{"lan": {}, "majority": {majority: true, witnesses: 1}} {
		for _, directors := range []int{1, 2, 5} {
			w := calm(t, directors, f)
			for _, n := range w.nodes {
				n.kill()
			}
			w.run(w.now + time.Minute)
			for _, n := range w.nodes {
				n.start()
			}
			took := w.served(t, startBound)
			t.Logf("%s, %d directors: all is served after %v", name, directors, took)
			w.settle(t, 5*time.Second)
			for i, n := range w.shares()[:directors] {
				if n < w.buckets/directors {
					t.Errorf("%s: d%d has %d of %d buckets", name, i, n, w.buckets)
				}
			}
		}
	}
}

// The daemon of a sole director is restarted: it serves at once, whether its
// syncd is synced or not. Beside somebody who serves it waits for that.
func TestGateOnlyBesideWhoServes(t *testing.T) {
	w := calm(t, 1, faults{})
	n := w.nodes[0]
	n.ungated = true
	n.kill()
	w.run(w.now + time.Second)
	n.start()
	t.Logf("a sole director serves %v after its restart", w.served(t, startBound))

	w = calm(t, 2, faults{})
	n = w.nodes[0]
	n.ungated = true
	n.kill()
	w.settle(t, time.Second)
	n.start()
	w.settle(t, 10*time.Second)
	w.want(t, "one without the connections, beside one that serves", 0, 16)
	if s := n.core.Snapshot(n.local()); s.State != Joining || s.Why == "" {
		t.Errorf("it is %v because %q", s.State, s.Why)
	}
	w.nodes[1].kill()
	t.Logf("it serves %v after the other's death", w.served(t, startBound))
}

// roll restarts one node after another, as planned, and does something before
// each starts again. No flow may notice.
func (w *world) roll(t *testing.T, before func(n *simNode)) {
	t.Helper()
	for _, n := range w.nodes {
		n.does(func(c *Core, now time.Duration) { c.Leave(now) })
		for end := w.now + 10*time.Second; !n.core.Gone(); w.run(w.now + time.Millisecond) {
			if w.now > end {
				t.Fatalf("%s does not leave\n%s", n.name, w.dump())
			}
		}
		n.kill()
		w.settle(t, 500*time.Millisecond)
		before(n)
		n.start()
		w.settle(t, 4*time.Second)
	}
	if w.worstGap > gapBound {
		t.Errorf("a move left a bucket without an acceptor for %v", w.worstGap)
	}
}

// A cluster is upgraded from one version to the next, one node after another,
// under both quorums: all of them share all the time.
func TestRollingUpgradeOfEverybody(t *testing.T) {
	for _, f := range []faults{{steady: true}, {steady: true, majority: true, witnesses: 1}} {
		w := calm(t, 3, f)
		w.roll(t, func(n *simNode) { n.upgrade = true })
		for i, n := range w.nodes {
			if open := w.shares()[i]; !n.newer || n.witness != (open == 0) {
				t.Errorf("%s: newer %v, with %d buckets", n.name, n.newer, open)
			}
		}
	}
}

// A voter is added, and another taken away, on one node after another: at no
// moment two majorities exist that share no voter, and none is missed.
func TestVotersChangeOneAtATime(t *testing.T) {
	w := newWorld(3, 3, faults{majority: true, witnesses: 1, steady: true}, 0)
	lists := [][]NodeID{
		{ID("d0"), ID("d1"), ID("d2")},
		{ID("d0"), ID("d1"), ID("d2"), ID("d3")}, // the witness is added
		{ID("d1"), ID("d2"), ID("d3")},           // a director does not vote any more
	}
	w.voting = lists[0]
	w.after(0, w.watch)
	w.settle(t, 5*time.Second)
	for _, list := range lists[1:] {
		w.roll(t, func(*simNode) { w.voting = list })
		for i, n := range w.shares()[:3] {
			if n < 5 {
				t.Errorf("voters %v: d%d has %d buckets", list, i, n)
			}
		}
	}
	if s := w.nodes[0].core.Snapshot(w.nodes[0].local()); s.Have != 3 || s.Need != 2 {
		t.Errorf("%d of %d voters are heard", s.Have, s.Need)
	}
}

// A machine dies, and another takes its name: it serves when the dead one's
// promises have lapsed, as the same director.
func TestReplacedUnderTheSameName(t *testing.T) {
	for _, f := range []faults{{clone: true}, {clone: true, majority: true}} {
		w := newWorld(5, 3, f, 0)
		spare := w.nodes[2]
		spare.name = "d9" // another's, until it is needed
		w.voting = nil
		if f.majority {
			w.voting = []NodeID{ID("d0"), ID("d1"), ID("d9")}
		}
		w.after(0, w.watch)
		w.settle(t, 5*time.Second)
		dead := w.nodes[0]
		dead.kill()
		spare.kill()
		w.run(w.now + 100*time.Millisecond) // the promises live still
		spare.name = dead.name
		spare.start()
		w.run(w.now + 5*time.Second)
		if len(w.bad) > 0 {
			t.Fatal(w.bad)
		}
		w.alive()
		w.want(t, "a new machine under the old name", 0, 8, 8)
		if s := spare.core.Snapshot(spare.local()); s.Stats.OwnName != 0 {
			t.Errorf("it takes the dead one for a clone: %+v", s.Stats)
		}
	}
}
