package membership

import (
	"time"
)

func (n *simNode) transmit(a simAction) {
	n.w.recordOf(n, a)
	for _, to := range n.w.nodes {
		if to == n || a.To != 0 && a.To != ID(to.name) {
			continue
		}
		for path := range 2 {
			n.w.carry(path, n, to, a.wire)
			if n.w.chance(n.w.f.dup) {
				n.w.carry(path, n, to, a.wire)
			}
		}
	}
}

// carry takes one datagram (path 0) or frame (path 1) to its receiver.
func (w *world) carry(path int, from, to *simNode, b []byte) {
	if w.cut[path][from.i][to.i] || path == 1 && (from.witness || to.witness) || w.chance(w.f.drop) {
		return
	}
	if w.lose != nil && w.lose(from, to, b) {
		return
	}
	d := w.between(50*time.Microsecond, 600*time.Microsecond)
	if w.chance(w.f.slow) {
		d = w.between(0, w.arm)
		if w.chance(0.5) {
			d = w.between(0, time.Second)
		}
	}
	w.after(d, func() {
		if !to.up {
			return
		}
		if b[0] == byte(TypeHeartbeat) && d < 10*time.Millisecond {
			e := &w.arrived[from.i][to.i]
			if w.now-e.last > Watch(w.lease)-w.interval {
				e.since = w.now
			}
			e.last = w.now
		}
		if w.now < to.stalled && len(to.inbox) > to.backlog() && w.chance(0.7) {
			return // the socket's buffer is full
		}
		to.hear(path, b)
	})
}

// hears reports whether heartbeats of b led to a without a detour, all along
// the time in which silence would count.
func (w *world) hears(a, b int, long time.Duration) bool {
	e := w.arrived[b][a]
	return w.now-e.last < Watch(w.lease)-w.interval && w.now-e.since > long
}

// connected reports whether heartbeats led from a to b, through any others,
// all along the time in which silence would count.
func (w *world) connected(a, b int, long time.Duration) bool {
	seen := 1 << a
	for todo := []int{a}; len(todo) > 0; todo = todo[1:] {
		u := todo[0]
		for v := range w.nodes {
			if seen>>v&1 == 0 && w.hears(v, u, long) {
				seen |= 1 << v
				todo = append(todo, v)
			}
		}
	}
	return seen>>b&1 == 1
}

// isolate cuts a off from b, or heals that.
func (w *world) isolate(a, b *simNode, on bool) {
	for p := range w.cut {
		w.cut[p][a.i][b.i], w.cut[p][b.i][a.i] = on, on
	}
}

func (w *world) cutSomething(n *simNode) {
	switch {
	case w.f.halves:
		if w.cut != [2][maxSim][maxSim]bool{} {
			return
		}
		side := w.IntN(1<<len(w.nodes)-2) + 1
		for a := range w.nodes {
			for b := range w.nodes {
				if side>>a&1 != side>>b&1 {
					w.cut[0][a][b], w.cut[1][a][b] = true, true
				}
			}
		}
		w.logf(n, "split %b", side)
		w.after(w.between(500*time.Millisecond, 2*time.Second), func() {
			w.logf(n, "heals")
			w.cut = [2][maxSim][maxSim]bool{}
		})
	case w.f.poison:
		if w.cut != [2][maxSim][maxSim]bool{} {
			return
		}
		w.logf(n, "gets no frames")
		for a := range w.nodes {
			w.cut[1][a][n.i] = true
		}
		w.after(w.between(500*time.Millisecond, 3*time.Second), func() { w.cut = [2][maxSim][maxSim]bool{} })
	case w.f.cuts || w.f.oneCut:
		if w.f.oneCut {
			w.cut = [2][maxSim][maxSim]bool{}
		}
		a := n.i
		b := (a + 1 + w.IntN(len(w.nodes)-1)) % len(w.nodes)
		both, path := w.chance(0.5), w.IntN(4)
		set := func(on bool) {
			for p := range w.cut {
				if path > 1 || path == p {
					w.cut[p][a][b] = on
					w.cut[p][b][a] = both && on || !both && w.cut[p][b][a]
				}
			}
		}
		set(true)
		w.logf(w.nodes[a], "cut to %s, both %v, path %d", w.nodes[b].name, both, path)
		w.after(w.between(0, 3*time.Second), func() { set(false) })
	}
}
