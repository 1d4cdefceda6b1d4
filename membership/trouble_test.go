package membership

import (
	"time"
)

// quiet ends all trouble.
func (w *world) quiet() {
	w.f.drop, w.f.dup, w.f.slow = 0, 0, 0
	w.f.stalls, w.f.slowNft = false, false
	w.cut = [2][maxSim][maxSim]bool{}
	for _, n := range w.nodes {
		n.input(n.life, func() {
			n.core.Drain(n.local(), false)
			n.core.Freeze(n.local(), false)
			n.core.SetDegraded(n.local(), false)
		})
	}
}

// trouble makes a fault from time to time until end.
func (w *world) trouble(end time.Duration) {
	if w.now >= end {
		w.quiet()
		return
	}
	n := w.nodes[w.IntN(len(w.nodes))]
	life := n.life
	fault := w.IntN(9)
	if w.f.amnesia && w.chance(0.3) {
		w.forget(n)
		fault = -1
	}
	switch fault {
	case 0:
		if w.f.kills && n.up {
			n.kill()
			back := w.between(time.Millisecond, 1500*time.Millisecond)
			if w.chance(0.5) {
				back = w.between(time.Millisecond, 20*time.Millisecond)
			}
			w.after(back, n.start)
		}
	case 1:
		if w.f.drain && n.up {
			on := w.chance(0.5)
			w.logf(n, "drain %v", on)
			n.input(life, func() { n.core.Drain(n.local(), on) })
		}
	case 2:
		if w.f.flush {
			w.flush(n)
		}
	case 3, 4:
		w.cutSomething(n)
	case 5:
		if w.f.drain && n.up && !n.leaving && w.chance(0.3) && (!w.f.steady || w.spares(n)) {
			w.logf(n, "leaves")
			n.input(life, func() { n.leaving = true; n.core.Leave(n.local()) })
		}
	case 6:
		if w.f.freeze && n.up && !n.kernel.frozen {
			n.freeze(w.between(0, 2*time.Second))
		}
	case 7, 8:
		if w.f.moves && n.up {
			n.input(life, func() { w.move(n) })
		}
	}
	w.after(w.between(50*time.Millisecond, 700*time.Millisecond), func() { w.trouble(end) })
}

// forget cuts a holder off from another for long, then from all, hangs it, and
// restarts a voter that promised it something at that moment.
func (w *world) forget(holder *simNode) {
	k := len(w.nodes)
	taker := w.nodes[(holder.i+1+w.IntN(k-1))%k]
	voter := w.nodes[(holder.i+1+w.IntN(k-1))%k]
	w.logf(holder, "is cut from %s, then %s forgets it", taker.name, voter.name)
	w.isolate(holder, taker, true)
	w.after(w.between(400*time.Millisecond, 600*time.Millisecond), func() {
		holder.stalled = max(holder.stalled, w.now+w.between(0, time.Second))
		for _, o := range w.nodes {
			w.isolate(holder, o, true)
		}
		if voter != taker && voter.up && w.now < troubleEnds {
			voter.kill()
			w.after(w.between(time.Millisecond, 5*time.Millisecond), voter.start)
		}
	})
	w.after(w.between(time.Second, 2*time.Second), func() {
		for _, o := range w.nodes {
			w.isolate(holder, o, false)
		}
	})
}

func (w *world) move(n *simNode) {
	switch on := w.chance(0.4); w.IntN(3) {
	case 0:
		n.core.SetWeight(n.local(), uint16(1+w.IntN(200)))
	case 1:
		n.core.SetDegraded(n.local(), on)
	case 2:
		n.core.Freeze(n.local(), on)
		w.logf(n, "freeze %v", on)
	}
}

// spares reports whether all others are there, so that n may go in peace.
func (w *world) spares(n *simNode) bool {
	for _, o := range w.nodes {
		if s := o.core.state; o != n && (!o.up || o.leaving || s != Ready && s != Draining) {
			return false
		}
	}
	return !n.witness
}

// adversary hands out assignments of its own, each to some of the nodes.
func (w *world) adversary(end time.Duration, e Epoch) {
	if w.now >= end {
		return
	}
	e.Term += w.Uint32N(2)
	for _, n := range w.nodes {
		own, _ := n.core.epoch()
		e.Term = max(e.Term, own.Term)
	}
	e.Counter, e.Issuer = e.Counter+1, 99
	for _, n := range w.nodes {
		if !n.up || !w.chance(0.8) {
			continue
		}
		a := &Assignment{Header: w.nodes[0].core.head(), Epoch: e, Shape: 7, Buckets: w.buckets, Owner: make([]uint8, w.buckets)}
		a.From = 1
		for _, n := range w.nodes {
			a.Seats = append(a.Seats, Seat{ID(n.name), n.core.cfg.Incarnation, Epoch{Term: 1}, 100})
		}
		// Not even to all the same.
		for b := range a.Owner {
			a.Owner[b] = uint8(w.IntN(len(a.Seats)))
		}
		a.Hash = a.contentHash()
		life := n.life
		w.after(w.between(0, 20*time.Millisecond), func() {
			n.input(life, func() { n.core.Receive(n.local(), a) })
		})
	}
	d := w.between(0, 30*time.Millisecond)
	if w.chance(0.2) {
		d = w.between(0, 500*time.Millisecond)
	}
	w.after(d, func() { w.adversary(end, e) })
}
