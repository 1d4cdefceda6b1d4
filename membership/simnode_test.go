package membership

import (
	"time"

	"saru/partition"
)

type simNode struct {
	w       *world
	i       int
	name    string
	witness bool
	newer   bool // speaks the next version
	upgrade bool // it does so from its next start on
	ungated bool // its syncd is never synced
	core    *Core
	decoder Decoder
	life    int // counts restarts; events of earlier lives are void
	up      bool
	rate    float64
	offset  time.Duration // by which its clock stood still
	stalled time.Duration // until
	inbox   []func()
	todo    []simAction
	nextDue time.Duration
	kernel  simKernel
	leaving bool
	caught  [maxSim]time.Duration // when it last caught up with others
	born    time.Duration
	record  *[]Event
	sent    [][]byte      // its heartbeats, in worlds with recordings
	told    partition.Set // what its events say that it has open
}

// A simAction is an Action with its message as it goes over the wire.
type simAction struct {
	Action
	wire []byte
}

func (n *simNode) local() time.Duration {
	return time.Duration(float64(n.w.now)*n.rate) - n.offset
}

// span is the true time that a span of a clock takes.
func span(d time.Duration, rate float64) time.Duration { return time.Duration(float64(d) / rate) }

func (n *simNode) start() {
	n.life++
	n.born = n.w.now
	n.newer = n.upgrade || n.w.f.mixed && (n.i == 1 || n.life > 1 && n.w.chance(0.7))
	n.up, n.stalled, n.inbox, n.todo, n.leaving, n.told = true, 0, nil, nil, false, partition.Set{}
	k := &n.kernel
	k.account(n.w.now)
	k.open, k.rest, k.lease, k.frozen = partition.Set{}, partition.Set{}, 0, false // H1
	clear(k.armed)
	cfg := Config{
		Node: n.name, Incarnation: n.w.Uint64() | 1, Host: uint64(n.i) + 1, Cluster: "c", Share: 1, Shape: 7, Buckets: n.w.buckets,
		Lease: n.w.lease, Interval: n.w.interval, Arm: n.w.arm, Settle: 10 * time.Millisecond, Weight: 100, Frames: true,
		BarrierWait: 2 * time.Second, LeaveWithin: 10 * time.Second, // so that both are met in a world's life
		Voters: n.w.voters(), mutant: n.w.mut,
	}
	if n.w.f.moves {
		cfg.Hysteresis = 400 * time.Millisecond
	}
	if n.witness {
		cfg.Witness, cfg.Shape, cfg.Buckets, cfg.Frames, cfg.Voters = true, 0, 0, false, nil
	}
	n.core = New(cfg, n.local())
	n.core.SetGate(n.local(), n.w.chance(0.9) && !n.ungated, true)
	n.core.SetReach(n.local(), 1)
	n.w.logf(n, "starts, incarnation %x", n.core.cfg.Incarnation)
	n.nextDue = n.w.now
	life := n.life
	n.w.after(n.w.between(0, n.w.interval), func() { n.tick(life) })
	n.w.after(300*time.Millisecond, func() {
		n.input(life, func() { n.core.SetGate(n.local(), !n.ungated, true) })
	})
}

func (n *simNode) kill() {
	n.w.logf(n, "killed")
	n.up, n.leaving = false, false
	n.life++
}

// tick is the timer: due every interval, run when the daemon runs.
func (n *simNode) tick(life int) {
	if life != n.life {
		return
	}
	if n.busy() {
		n.w.at(max(n.stalled, n.w.now+100*time.Microsecond), func() { n.tick(life) })
		return
	}
	if n.w.mut&countStalledSilence == 0 {
		n.drain()
	}
	if n.busy() {
		n.w.after(100*time.Microsecond, func() { n.tick(life) })
		return
	}
	n.maybeStall(0.003)
	if n.busy() {
		n.w.at(n.stalled, func() { n.tick(life) })
		return
	}
	n.core.Tick(n.local())
	n.act()
	n.nextDue = max(n.nextDue+span(n.w.interval, n.rate), n.w.now)
	n.w.at(n.nextDue, func() { n.tick(life) })
}

func (n *simNode) busy() bool { return n.w.now < n.stalled || len(n.todo) > 0 }

// input is a message or a result that reaches the daemon.
func (n *simNode) input(life int, do func()) {
	if life != n.life {
		return
	}
	if !n.busy() {
		n.drain()
	}
	if n.busy() {
		n.inbox = append(n.inbox, do)
		if len(n.inbox) == 1 {
			n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
		}
		return
	}
	do()
	n.act()
}

func (n *simNode) wake(life int) {
	if life != n.life || len(n.inbox) == 0 {
		return
	}
	if !n.busy() {
		n.drain()
	}
	if len(n.inbox) > 0 {
		n.w.at(max(n.stalled, n.w.now+50*time.Microsecond), func() { n.wake(life) })
	}
}

func (n *simNode) drain() {
	for len(n.inbox) > 0 && !n.busy() {
		do := n.inbox[0]
		n.inbox = n.inbox[1:]
		do()
		n.act()
	}
}

func (n *simNode) maybeStall(p float64) {
	if n.w.f.often {
		p *= 4
	}
	if n.w.f.stalls && n.w.chance(p) {
		d := n.w.between(0, 100*time.Millisecond)
		if n.w.chance(0.3) {
			d = n.w.between(0, 3*time.Second)
		}
		n.stalled = n.w.now + d
		n.w.logf(n, "stalls for %v", d)
	}
}

// note follows the events, which must tell all that opens and closes.
func (n *simNode) note() {
	for _, e := range n.core.Events() {
		switch e.Kind {
		case Opened:
			n.told = n.told.Union(e.Buckets)
		case Closed:
			n.told = n.told.Minus(e.Buckets)
		}
		n.w.logf(n, "says: %v", e)
		if n.record != nil {
			*n.record = append(*n.record, e)
		}
	}
	if n.told != n.core.sure {
		n.w.fail("%s has %s open, and its events tell %s", n.name, n.core.sure, n.told)
	}
	if n.core.stats.EventsLost > 0 {
		n.w.fail("%s lost events", n.name)
	}
}

func (n *simNode) act() {
	n.note()
	for _, a := range n.core.Actions() {
		s := simAction{Action: a}
		if a.Kind == Send {
			s.wire, s.Message = a.Message.Append(nil), nil
			if n.newer {
				s.wire[1]++
				s.wire = append(s.wire, "what the next version adds"...)
			}
			if len(s.wire) > MaxMessage {
				n.w.fail("message of %d bytes", len(s.wire))
			}
		}
		n.todo = append(n.todo, s)
	}
	n.work(n.life)
}

func (n *simNode) work(life int) {
	if life != n.life {
		return
	}
	for len(n.todo) > 0 {
		if n.w.now < n.stalled {
			n.w.at(n.stalled, func() { n.work(life) })
			return
		}
		n.maybeStall(0.0007)
		if n.w.now < n.stalled {
			continue
		}
		a := n.todo[0]
		n.todo = n.todo[1:]
		n.perform(life, a)
	}
	n.todo = nil
	if n.w.mut&countStalledSilence != 0 && n.core.Next() <= n.local() {
		n.core.Wake(n.local()) // the timer before the socket
		n.act()
		return
	}
	if at := n.core.Next(); at != never {
		n.w.at(time.Duration(float64(at+n.offset)/n.rate)+time.Microsecond, func() {
			if life == n.life && n.core.Next() <= n.local() {
				n.input(life, func() { n.core.Wake(n.local()) })
			}
		})
	}
	if n.leaving && n.core.Gone() {
		n.w.logf(n, "left")
		n.kill()
		n.w.after(n.w.between(10*time.Millisecond, time.Second), n.start)
	}
}

// barrier lets the daemon's syncd catch up, or says that another's has.
func (n *simNode) barrier(life int, a Action) {
	w := n.w
	d := w.between(0, 200*time.Millisecond)
	if !w.f.steady && w.chance(0.1) {
		return // never answered
	}
	w.after(d, func() {
		if life != n.life {
			return
		}
		for _, o := range w.nodes {
			if ID(o.name) == a.To && !a.Back {
				n.caught[o.i] = w.now
			}
		}
		n.input(life, func() { n.core.BarrierDone(n.local(), a.N) })
	})
}

// hear brings a message to a node's daemon.
func (n *simNode) hear(path int, b []byte) {
	n.input(n.life, func() {
		m, err := n.decoder.Decode(b)
		if err != nil {
			n.w.fail("undecodable message: %v", err)
			return
		}
		if path == 1 {
			n.core.Frame(n.local(), m)
		}
		n.core.Receive(n.local(), m)
		n.pay()
	})
}
