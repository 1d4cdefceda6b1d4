package membership

import (
	"fmt"
	"strings"
	"time"

	"saru/partition"
)

// checkBarrier sees that n takes up buckets, for established flows or all, only
// with the connections of whoever accepted new ones last and still serves them.
func (w *world) checkBarrier(n *simNode, taken partition.Set) {
	if !w.f.steady {
		return
	}
	for b := range taken.All() {
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

// excused reports whether a and b may both begin to accept a bucket now.
func (w *world) excused(a, b *simNode) bool {
	return w.thawed(a, b) || w.split() && !(w.connected(a.i, b.i, w.lease) && w.connected(b.i, a.i, w.lease))
}

// lasts reports whether a and b may still both accept a bucket, having begun
// when they were excused. Only two that hear each other settle a conflict: that
// a way through others has come back, one way each, tells neither that the
// other accepts.
func (w *world) lasts(a, b *simNode) bool {
	return w.thawed(a, b) || w.split() && !(w.hears(b.i, a.i, w.lease) && w.hears(a.i, b.i, w.lease))
}

func (w *world) thawed(a, b *simNode) bool {
	return w.now <= a.kernel.thawed || w.now <= b.kernel.thawed
}

// split reports whether this world's nodes may be split without a quorum.
func (w *world) split() bool { return w.f.cuts && !w.f.majority }

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
			if !both.Empty() && !w.lasts(a, b) {
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
