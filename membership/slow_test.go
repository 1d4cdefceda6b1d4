package membership

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A load makes machines slow: their daemons stand still now and then, and
// every message takes time.
type load struct {
	every    time.Duration // between two stalls of a node, on average
	from, to float64       // length of a stall, in leases
	cost     time.Duration // of a message, at most
	last     bool          // only the last node has it; and it leaves and joins
}

const (
	// slowFrom is when slow worlds begin to be judged, and slowFor for how long.
	slowFrom = 4 * time.Second
	slowFor  = 26 * time.Second
	// restartEvery is how often a slow joiner joins.
	restartEvery = 9 * time.Second
)

// A slowWorld is one that must stay alive although machines are slow.
type slowWorld struct {
	load
	nodes  int
	open   float64 // of the time that a bucket is open, on average over all: at least
	epochs float64 // at most, on average over the worlds
	closed float64 // times that a director (of one slow, another) had to close something, at most
}

var slowWorlds = map[string]slowWorld{
	"one slow":    {load{every: 400 * time.Millisecond, from: 0.5, to: 2, last: true}, 3, 0.985, 20, 1},
	"slow joiner": {load{every: 10 * time.Second, from: 0.1, to: 0.5, cost: 12 * time.Millisecond, last: true}, 3, 0.985, 24, 1},
	"all short":   {load{every: 300 * time.Millisecond, from: 0.1, to: 0.5}, 5, 0.99, 10, 4},
	"all long":    {load{every: 2 * time.Second, from: 0.1, to: 2}, 3, 0.91, 35, 20},
	"overload":    {load{every: 20 * time.Second, from: 0.1, to: 0.5, cost: 6 * time.Millisecond}, 5, 0.97, 30, 12},
	"crawl":       {load{every: 150 * time.Millisecond, from: 0.34, to: 1.1}, 3, 0.36, 80, 50},
	"late ticks":  {load{every: 200 * time.Millisecond, from: 0.34, to: 0.6}, 3, 0.96, 10, 12},
}

// tallies are what a slow world is judged by.
type tallies struct {
	looks, open, closed int
}

// look counts what is open now.
func (w *world) look() {
	if w.now < slowFrom {
		return
	}
	w.tally.looks += w.buckets
	for _, n := range w.nodes {
		open := n.kernel.accepts(w.now)
		w.tally.open += open.Len()
	}
}

// burdened reports whether n has the world's load.
func (n *simNode) burdened() bool {
	l := n.w.f.busy
	return l != nil && (!l.last || n.i == len(n.w.nodes)-1)
}

// backlog is how many messages surely wait unread in n's sockets.
func (n *simNode) backlog() int {
	if n.burdened() {
		return 300
	}
	return 6
}

// pay lets the time pass that a message takes.
func (n *simNode) pay() {
	if n.burdened() && n.w.f.busy.cost > 0 {
		n.stalled = max(n.stalled, n.w.now+n.w.between(0, n.w.f.busy.cost))
	}
}

// burden makes n stall from time to time.
func (w *world) burden(n *simNode) {
	l := w.f.busy
	w.after(time.Duration(w.ExpFloat64()*float64(l.every)), func() {
		d := w.between(time.Duration(l.from*float64(w.lease)), time.Duration(l.to*float64(w.lease)))
		n.stalled = max(n.stalled, w.now+d)
		w.logf(n, "stalls for %v", d)
		w.after(d, func() { w.burden(n) })
	})
}

// rejoin restarts n from time to time.
func (w *world) rejoin(n *simNode) {
	w.after(restartEvery, func() {
		n.does(func(c *Core, now time.Duration) { n.leaving = true; c.Leave(now) })
		w.rejoin(n)
	})
}

func (s slowWorld) run(seed uint64, mut mutant) *world {
	w := newWorld(seed, s.nodes, faults{busy: &s.load}, mut)
	for _, n := range w.nodes {
		if n.burdened() {
			w.burden(n)
		}
	}
	if s.last {
		w.rejoin(w.nodes[s.nodes-1])
	}
	w.after(0, w.watch)
	var tapes []*[]Event
	for _, n := range w.nodes {
		tapes = append(tapes, n.tape())
	}
	w.run(slowFrom + slowFor)
	for i, tape := range tapes {
		for _, e := range told(*tape, Closed) {
			if e.Why != whyTaken && (!s.last || !w.nodes[i].burdened()) {
				w.tally.closed++
			}
		}
	}
	return w
}

// judge runs worlds, and says what is wrong with them.
func (s slowWorld) judge(first, n uint64, mut mutant) (is string, wrong error) {
	var open, epochs, closed float64
	for seed := first; seed < first+n; seed++ {
		w := s.run(seed, mut)
		if len(w.bad) > 0 {
			return "", fmt.Errorf("-sim.seed %d: %s\n%s", seed, strings.Join(w.bad, "\n"), w.dump())
		}
		open += float64(w.tally.open) / float64(w.tally.looks) / float64(n)
		closed += float64(w.tally.closed) / float64(n)
		for _, node := range w.nodes {
			epochs += float64(node.core.stats.AssignmentsMade) / float64(n)
		}
	}
	is = fmt.Sprintf("%d worlds: open %.2f %% of the time, %.1f epochs and %.1f times closed in each", n, open*100, epochs, closed)
	if open < s.open || epochs > s.epochs || closed > s.closed {
		wrong = fmt.Errorf("%s; want %.2f %%, %.0f and %.0f", is, s.open*100, s.epochs, s.closed)
	}
	return is, wrong
}

// Slow machines cost what they must, and no more: a director that is slow, or
// joins slowly, costs the others nothing, and all that are slow serve most of
// the time.
func TestSlowMachines(t *testing.T) {
	for name, s := range slowWorlds {
		if *simProfile != "" && *simProfile != name {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, n := worlds(t, 2)
			is, wrong := s.judge(first, n, 0)
			if wrong != nil {
				t.Fatal(wrong)
			}
			t.Log(is)
		})
	}
}

func TestSlowMachineMutants(t *testing.T) {
	for name, m := range map[string]struct {
		mut   mutant
		world string
	}{
		"a short stall closes the share":             {closeEarly, "late ticks"},
		"who is too slow takes part again at once":   {noProof, "one slow"},
		"a late tick begins all counts of time anew": {lateResets, "crawl"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			is, wrong := slowWorlds[m.world].judge(0, 2, m.mut)
			if wrong == nil {
				t.Errorf("the simulation does not see this error: %s", is)
			}
			t.Log(wrong)
		})
	}
}
