package membership

import (
	"testing"
	"time"
)

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
