package membership

import (
	"strings"
	"testing"
	"time"

	"saru/partition"
)

// tape keeps what a node's events tell, from now on.
func (n *simNode) tape() *[]Event {
	var all []Event
	n.record = &all
	return &all
}

// told returns the events of a kind.
func told(all []Event, k EventKind) (es []Event) {
	for _, e := range all {
		if e.Kind == k {
			es = append(es, e)
		}
	}
	return es
}

// Whoever asks why buckets moved finds it in the events of any director: which,
// from whom to whom, why, and under which epoch.
func TestEventsSayWhyBucketsMove(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world)
		from string
		why  string
	}{
		{"drain", func(w *world) { w.nodes[1].does(func(c *Core, now time.Duration) { c.Drain(now, true) }) }, "d1", "d1 drains"},
		{"leave", func(w *world) { w.nodes[1].does(func(c *Core, now time.Duration) { c.Leave(now) }) }, "d1", "d1 is leaving"},
		{"crash", func(w *world) { w.nodes[1].kill() }, "d1", "d1 is unreachable"},
		{"weight", func(w *world) { w.nodes[1].does(func(c *Core, now time.Duration) { c.SetWeight(now, 10) }) }, "d1", "the weight of d1 is 10, was 100"},
		{"degraded", func(w *world) { w.nodes[1].does(func(c *Core, now time.Duration) { c.SetDegraded(now, true) }) }, "d1", "d1 is degraded"},
		{"no ping", func(w *world) { w.nodes[1].does(func(c *Core, now time.Duration) { c.SetReach(now, 0) }) }, "d1", "d1 reaches fewer ping nodes than others"},
	} {
		w := calm(t, 3, faults{})
		lost := w.nodes[1].kernel.open
		tapes := []*[]Event{w.nodes[0].tape(), w.nodes[2].tape()}
		c.do(w)
		w.settle(t, 15*time.Second)
		for _, tape := range tapes {
			var moved partition.Set
			for _, e := range told(*tape, Moved) {
				if e.From != c.from || e.Why != c.why || e.To == c.from || e.To == "" || e.Epoch == (Epoch{}) {
					t.Errorf("%s: %v", c.name, e)
				}
				moved = moved.Union(e.Buckets)
			}
			if keeps := w.nodes[1].kernel.accepts(w.now); moved != lost.Minus(keeps) {
				t.Errorf("%s: %v moved from d1, the events tell %v", c.name, lost.Minus(keeps), moved)
			}
		}
	}
}

func TestEventsOfAJoinAndAFence(t *testing.T) {
	w := calm(t, 2, faults{})
	n := w.nodes[0]
	tape := n.tape()
	n.does(func(c *Core, now time.Duration) { c.SetLink(now, false) })
	w.settle(t, time.Second)
	n.does(func(c *Core, now time.Duration) { c.SetLink(now, true) })
	n.does(func(c *Core, now time.Duration) { c.Freeze(now, true) })
	w.settle(t, 3*time.Second)
	n.does(func(c *Core, now time.Duration) { c.Freeze(now, false) })
	w.settle(t, 3*time.Second)
	var lines []string
	for _, e := range *tape {
		lines = append(lines, e.String())
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{
		"d0 is fenced, was ready: " + whyLink, "let go of 8-15: " + whyLink, "d0 is joining, was fenced: " + whyLink,
		"d0 is ready, was joining", "took ", "planned moves are stopped", "planned moves go on", "d0 takes part",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// Who never asks for the events loses them, and nothing else.
func TestEventsAreBounded(t *testing.T) {
	p := newPair(256)
	for i := range 2000 {
		p.cores[0].Freeze(p.now, i%2 == 0)
		p.interval()
	}
	c := p.cores[0]
	if n := len(c.events); n > maxEvents || c.stats.EventsLost == 0 {
		t.Errorf("%d events wait, %d lost", n, c.stats.EventsLost)
	}
}
