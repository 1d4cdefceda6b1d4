package membership

import (
	"time"

	"saru/partition"
)

// A simKernel is one director's kernel: it alone accepts.
type simKernel struct {
	open, rest partition.Set
	lease      time.Duration            // live until, true time
	armed      map[uint64]time.Duration // n -> armed until, true time
	rate       float64                  // of its clock
	frozen     bool
	thawed     time.Duration             // what a frozen machine still accepted ends here
	accounted  time.Duration             // until here last is true
	last       [MaxBuckets]time.Duration // when a bucket was last accepted
}

func (k *simKernel) accepts(now time.Duration) partition.Set {
	if k.lease <= now || k.frozen {
		return partition.Set{}
	}
	return k.open
}

func (k *simKernel) serves(now time.Duration) partition.Set {
	if k.lease <= now || k.frozen {
		return partition.Set{}
	}
	return k.rest
}

// account notes until when buckets were accepted; call it before any change.
func (k *simKernel) account(now time.Duration) {
	if until := min(now, k.lease); until > k.accounted && !k.frozen {
		for b := range k.open.All() {
			k.last[b] = until
		}
	}
	k.accounted = now
}

// freeze stops the machine, kernel and clocks and all.
func (n *simNode) freeze(d time.Duration) {
	w, k := n.w, &n.kernel
	w.logf(n, "machine frozen for %v", d)
	k.account(w.now)
	k.frozen, n.stalled = true, max(n.stalled, w.now+d)
	life := n.life
	w.after(d, func() {
		k.account(w.now)
		k.frozen = false
		if life != n.life {
			return
		}
		n.offset += time.Duration(float64(d) * n.rate)
		k.lease += d
		for m := range k.armed {
			k.armed[m] += d
		}
		k.thawed = w.now + n.w.lease + lateness
		w.check(n, partition.Set{})
	})
}

func (n *simNode) perform(life int, a simAction) {
	w, k := n.w, &n.kernel
	jiffies := func() time.Duration { return w.between(0, lateness/2) }
	switch a.Kind {
	case Arm:
		k.armed[a.N] = w.now + span(n.w.arm, k.rate) + jiffies()
		for m, t := range k.armed {
			if t < w.now {
				delete(k.armed, m)
			}
		}
	case Send:
		n.transmit(a)
	case Confirm:
		k.account(w.now)
		was := k.accepts(w.now)
		if w.mut&fullLeaseAtWrite != 0 {
			k.lease = w.now + span(n.w.lease, k.rate) + jiffies()
		} else if k.armed[a.N] >= w.now {
			k.lease = w.now + span(n.w.lease-n.w.arm, k.rate) + jiffies()
		}
		w.check(n, was)
	case Apply:
		n.apply(life, a.Action)
	case Barrier:
		n.barrier(life, a.Action)
	}
}

// fullLeaseAtWrite is an error of the kernel's part, not of the Core's.
const fullLeaseAtWrite mutant = 1 << 40

func (n *simNode) apply(life int, a Action) {
	w, k := n.w, &n.kernel
	d := w.between(200*time.Microsecond, 2*time.Millisecond)
	commits, known := true, true
	if w.f.slowNft {
		if w.chance(0.1) {
			d = w.between(0, 2500*time.Millisecond)
		}
		commits = !w.chance(0.05)
		known = !w.chance(0.05)
	}
	if !a.Rest.Contains(a.Open) {
		w.fail("%s opens %s with rest %s", n.name, a.Open, a.Rest)
	}
	w.after(d, func() {
		if life != n.life {
			return
		}
		if commits {
			w.logf(n, "kernel open %s rest %s", a.Open, a.Rest)
			w.checkBarrier(n, a.Rest.Minus(k.rest).Union(a.Open.Minus(k.open)))
			k.account(w.now)
			w.checkLinger(n, k.rest.Minus(a.Rest))
			was := k.accepts(w.now)
			k.open, k.rest = a.Open, a.Rest
			w.check(n, was)
		}
		open, rest := k.open, k.rest
		w.after(w.between(0, time.Millisecond), func() {
			n.input(life, func() { n.core.Applied(n.local(), open, rest, known) })
		})
	})
}

func (w *world) flush(n *simNode) {
	w.logf(n, "flushed")
	k := &n.kernel
	k.account(w.now)
	k.open, k.rest, k.lease = partition.Set{}, partition.Set{}, 0
	clear(k.armed)
	life := n.life
	w.after(w.between(0, time.Second), func() {
		if life == n.life && !n.core.applying {
			k.account(w.now)
			k.open, k.rest = partition.Set{}, partition.Set{}
			n.input(life, func() { n.core.Lost(n.local()) })
		}
	})
}
