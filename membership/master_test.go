package membership

import (
	"testing"
	"time"
)

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
