package membership

import (
	"math/rand/v2"
	"testing"
	"time"

	"saru/partition"
)

// recordOf keeps what n says, for haunt.
func (w *world) recordOf(n *simNode, a simAction) {
	if w.f.recorded && a.To == 0 {
		n.sent = append(n.sent, a.wire)
	}
}

// A recording is what a node said until some time, sent again from then on to
// those who were started later: all others remember what they have seen.
type recording struct {
	sent  [][]byte
	until time.Duration
	stop  bool
}

// record returns what n has said up to now.
func (w *world) record(n *simNode) *recording {
	return &recording{sent: n.sent[max(0, len(n.sent)-400):], until: w.now}
}

// haunt plays r, at the pace of a living node and over and over.
func (w *world) haunt(r *recording) {
	i := 0
	var next func()
	next = func() {
		if r.stop {
			return
		}
		for _, to := range w.nodes {
			if to.up && to.born > r.until {
				to.hear(w.IntN(2), r.sent[i%len(r.sent)])
			}
		}
		i++
		w.after(w.interval, next)
	}
	w.after(0, next)
}

// Recordings of a director that is gone change nothing for those who were
// started since: not while they join, not while they serve, and not for the
// last that is left.
func TestRecordingsChangeNothing(t *testing.T) {
	w := calm(t, 3, faults{recorded: true})
	r := w.record(w.nodes[0])
	w.nodes[0].kill()
	w.settle(t, time.Second)
	w.nodes[1].kill()
	w.settle(t, time.Second)
	w.haunt(r)
	w.nodes[1].start()
	w.settle(t, 4*time.Second)
	w.want(t, "a newcomer hears recordings", 0, 8, 8)
	w.nodes[2].kill()
	w.settle(t, time.Second)
	w.nodes[2].start()
	w.settle(t, 4*time.Second)
	w.want(t, "both hear recordings", 0, 8, 8)
	if s := w.nodes[2].core.Snapshot(w.nodes[2].local()); s.Have != 2 {
		t.Errorf("%d directors are counted", s.Have)
	}
	w.nodes[1].kill()
	w.settle(t, time.Second)
	w.want(t, "the last hears recordings", 0, 0, 16)
	w.nodes[0].start()
	w.settle(t, 4*time.Second)
	w.want(t, "the recorded one is back", 8, 0, 8)
}

// If recordings counted, one of a director that is gone would keep a newcomer
// from its share. Random worlds show that too seldom.
func TestRecordingsThatCount(t *testing.T) {
	w := calm(t, 3, faults{recorded: true})
	r := w.record(w.nodes[0])
	w.nodes[0].kill()
	w.nodes[1].kill()
	w.settle(t, time.Second)
	w.mut = believesRecordings
	w.haunt(r)
	w.nodes[1].start()
	w.run(w.now + 4*time.Second)
	if one, two := w.nodes[1].kernel.accepts(w.now), w.nodes[2].kernel.accepts(w.now); one.Len() == 8 && two.Len() == 8 {
		t.Error("a newcomer that believes recordings serves as if there were none")
	}
}

// A newcomer that hears only recordings cannot tell them from a director that
// it cannot reach. A ping node tells.
func TestRecordingsAndNobodyElse(t *testing.T) {
	w := calm(t, 2, faults{recorded: true})
	r := w.record(w.nodes[0])
	w.nodes[0].kill()
	w.nodes[1].kill()
	w.run(w.now + time.Second)
	w.haunt(r)
	n := w.nodes[1]
	n.start()
	w.run(w.now + 3*time.Second)
	w.want(t, "nothing tells", 0, 0)
	if s := n.core.Snapshot(n.local()); s.Why == "" {
		t.Errorf("it is %v because %q", s.State, s.Why)
	}
	var ping func()
	ping = func() {
		n.does(func(c *Core, now time.Duration) { c.PingOK(now) })
		w.after(100*time.Millisecond, ping)
	}
	ping()
	w.settle(t, 2*time.Second)
	w.want(t, "a ping node answers", 0, 16)
}

// A recording of another machine with a node's name fences nobody and keeps
// nobody out.
func TestRecordingOfANamesake(t *testing.T) {
	w := calm(t, 3, faults{recorded: true})
	old, other, now := w.nodes[0], w.nodes[1], w.nodes[2]
	r := w.record(old)
	old.kill()
	now.kill()
	w.run(w.now + time.Second)
	now.name = old.name
	other.kill()
	w.run(w.now + time.Second)
	w.haunt(r)
	now.start()
	other.start()
	w.settle(t, 5*time.Second)
	w.want(t, "the name has moved to another machine", 0, 8, 8)
	if now.core.stats.OwnName == 0 || now.core.stats.Fences != 0 {
		t.Errorf("%+v", now.core.stats)
	}
}

// The same, with everything else that can go wrong.
func (w *world) hauntAll(until time.Duration) {
	for _, n := range w.nodes {
		if len(n.sent) > 0 {
			r := w.record(n)
			w.haunt(r)
			w.after(w.between(0, 4*time.Second), func() { r.stop = true })
		}
	}
	if w.now < until {
		w.after(w.between(0, 2*time.Second), func() { w.hauntAll(until) })
	}
}

// Who had another share configuration in an earlier life, and serves by the
// present one, is not made a foreigner by recordings: it would be waited for by
// nobody, and another recording, of its farewell, would set its buckets free.
func TestRecordingsMakeNobodyForeign(t *testing.T) {
	p := newPair(16)
	for range 40 {
		p.interval()
	}
	c, other := p.cores[0], p.cores[1]
	b := c.peer(other.id)
	if !b.heard || !c.proven(b) || other.open.Len() != 8 {
		t.Fatalf("not in steady state: %+v", c.Snapshot(p.now))
	}
	old := Heartbeat{
		Header: Header{Share: 1, Cluster: c.cluster, From: other.id, Inc: 77}, N: 5, Lease: simLease, Host: other.cfg.Host, Words: 1, Name: "b",
	}
	shape := old
	shape.Shape = 6
	for what, recorded := range map[string]func(){
		"of another share configuration": func() { c.Receive(p.now, &shape) },
		"of another version":             func() { c.Foreign(p.now, &Fetch{Header: old.Header}) },
	} {
		recorded()
		if !b.heard || b.foreign {
			t.Errorf("a recording %s makes a living director a foreigner", what)
		}
		farewell := old
		farewell.Shape, farewell.N, farewell.State, farewell.Flags = c.cfg.Shape, 6, Left, FlagLeave
		c.Receive(p.now, &farewell)
		if !b.heard || b.inc != other.cfg.Incarnation {
			t.Errorf("a recording of its farewell, after one %s, is believed", what)
		}
		for bucket := range other.open.All() {
			if c.freeFor(bucket, c.id, c.cfg.Incarnation) {
				t.Fatalf("and sets its bucket %d free", bucket)
			}
		}
	}
	// One that lives, and proves it, is heard.
	c.Receive(p.now, &Proof{Header: old.Header, To: c.id, ToInc: c.cfg.Incarnation})
	c.Receive(p.now, &shape)
	if !b.foreign || b.heard {
		t.Error("a director that was started again with another share configuration is not taken for a foreigner")
	}
}

// An answer to a Barrier of an earlier life of this node cannot be taken for one
// to a Barrier of this.
func TestBarriersOfAnEarlierLife(t *testing.T) {
	first := func(inc uint64) uint64 {
		c := New(Config{Node: "a", Incarnation: inc, Host: 1, Cluster: "c", Share: 1, Buckets: 16, Lease: simLease, Interval: simInterval, Arm: simArm}, 0)
		p := c.addPeer(ID("b"))
		c.wait(p, &p.in, partition.FullSet(16), false)
		return p.in.token
	}
	if one, two := first(rand.Uint64()|1), first(rand.Uint64()|1); one == two || one == 0 || two == 0 {
		t.Errorf("two lives call their first Barrier %d and %d", one, two)
	}
}
