package membership

import (
	"testing"
	"time"
)

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

// However long the LAN was split and wherever, within 5 s of its return every
// bucket has one acceptor again, and all follow one assignment.
func TestHealsWithinFiveSeconds(t *testing.T) {
	for _, nodes := range []int{2, 3, 5} {
		for side := 1; side < 1<<(nodes-1); side++ {
			for _, long := range []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 3 * time.Second, 2 * time.Minute} {
				if nodes == 5 && side%5 != 0 || long > time.Minute && nodes > 2 {
					continue
				}
				w := calm(t, nodes, faults{cuts: true})
				split := func(on bool) {
					for a := range w.nodes {
						for b := range w.nodes {
							if side>>a&1 != side>>b&1 {
								w.isolate(w.nodes[a], w.nodes[b], on)
							}
						}
					}
				}
				split(true)
				w.settle(t, long)
				split(false)
				w.settle(t, 5*time.Second)
				sum := 0
				for i, n := range w.shares() {
					sum += n
					if e, _ := w.nodes[i].core.epoch(); e != w.nodes[0].core.assign.Epoch {
						t.Errorf("%d nodes split %b for %v: d%d follows %v", nodes, side, long, i, e)
					}
				}
				if sum != w.buckets || w.worst > overlapBound {
					t.Errorf("%d nodes split %b for %v: shares %v, both accepted for %v", nodes, side, long, w.shares(), w.worst)
				}
			}
		}
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
