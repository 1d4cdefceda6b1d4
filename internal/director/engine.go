package director

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/seal"
	"saru/membership"
	"saru/partition"
	"saru/partition/nft"
)

// A Filter is the kernel's side of a share; *nft.Filter is one.
type Filter interface {
	Arm(n uint64) error
	Confirm(n uint64) error
	Apply(d nft.Desired) error
	Settle(b *partition.Set, d time.Duration) error
	Verify() (bool, error)
	Reset() error
	Replan(p partition.Plan) error
	Stats() (nft.Stats, error)
	Buckets() ([]nft.BucketStats, error)
	Close() error
}

// leaveWithin bounds how long a stop may take to give the share away: what the
// core allows itself, and a little to close.
const leaveWithin = membership.DefaultLeaveWithin + 2*time.Second

// An Engine drives the protocol, one turn after another: its own goroutine
// does them, and a stand-in where that one is held up. It is a task.
type Engine struct {
	log      *slog.Logger
	turns    sync.Mutex    // one turn at a time; it guards all below
	done     atomic.Uint64 // turns of the own goroutine
	due      atomic.Int64  // the next tick, as nextTick
	standIns uint64        // turns that a stand-in did
	core     *membership.Core
	config   membership.Config // of core
	lives    uint64            // heartbeats of the lives before core's: the filter's numbers only grow
	noLink   map[string]bool   // interfaces without carrier
	held     bool              // closed, whatever the link, for another shape
	filter   Filter            // nil without a share
	applier  *applier
	barriers *barriers // nil where there are no connections to wait for
	paths    []*path
	opener   *seal.Opener

	interval time.Duration
	start    time.Time
	nextTick time.Duration
	calls    chan func(now time.Duration)
	later    []func(now time.Duration) // answers to the core, once its actions are done
	wakeFD   int
	waiter   *waiter
	up       chan struct{}
	leave    context.Context
	deadline time.Duration // of leaving, or 0

	ways   map[membership.NodeID]way
	seeds  []netip.AddrPort
	master atomic.Bool // this node is it
	onLead func()

	onHoldings             func(all []membership.Holding) // nil but in mode forward
	holdings, lastHoldings []membership.Holding
	events                 events
	foreigners             foreigners
	cluster                uint32
	id                     membership.NodeID
	host                   uint64
	share                  uint16
	shares                 []uint16 // of all that this process serves
	unfit                  string   // why this node is degraded, or soon will be

	plain, out, in []byte
	to             []netip.AddrPort
	decoder        membership.Decoder

	opened, armErrors, confirmErrors uint64
	drops                            map[error]uint64
	worstTick                        time.Duration
	sleep                            sleepClock
	realtime                         string
}

// newEngine returns an Engine for s. leave ends when the share is to be given
// away and the engine to end.
func newEngine(log *slog.Logger, s *Settings, leave context.Context, filter Filter, paths []*path) (*Engine, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	fds := []int{fd}
	for _, p := range paths {
		fds = append(fds, p.fd)
	}
	w, err := newWaiter(fds...)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	e := &Engine{
		cluster: membership.ClusterID(s.Cluster), share: uint16(s.ID), id: membership.ID(s.Node), host: hostID(),
		log: log, filter: filter, paths: paths, opener: seal.NewOpener(s.Keys, purpose),
		interval: s.Interval(), start: time.Now(), calls: make(chan func(time.Duration), 64), wakeFD: fd, waiter: w,
		up: make(chan struct{}), leave: leave, ways: map[membership.NodeID]way{},
		onLead: func() {}, noLink: map[string]bool{}, in: make([]byte, maxDgram), drops: map[error]uint64{},
	}
	for _, id := range s.ids {
		e.shares = append(e.shares, uint16(id))
	}
	for _, j := range s.Join {
		if j != s.Bind { // one list may do for all nodes
			e.seeds = append(e.seeds, netip.AddrPortFrom(j.Addr(), j.Port()+1))
		}
	}
	shape := s.Shape()
	if s.Witness {
		shape = 0 // it knows of no share, and votes for any
	}
	e.config = membership.Config{
		Node: s.Node, Incarnation: newIncarnation(), Cluster: s.Cluster, Share: uint16(s.ID),
		Shape: shape, Buckets: s.Buckets, Lease: s.Lease, Interval: s.Interval(), Arm: s.KernelLease() / 3,
		Settle: 10 * time.Millisecond, Weight: uint16(s.Weight), Witness: s.Witness, Voters: s.Voters, Host: hostID(), Frames: len(s.VIPs) > 0,
	}
	e.core = membership.New(e.config, e.now())
	return e, nil
}

// newIncarnation returns a number that no life of a node had before.
func newIncarnation() uint64 {
	var inc [8]byte
	rand.Read(inc[:])
	return binary.BigEndian.Uint64(inc[:]) | 1
}

// hostID tells this network namespace of this boot from all others: who starts
// here again has replaced the table of the one before.
func hostID() uint64 {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it, only the namespace counts
	ns, _ := os.Readlink("/proc/self/ns/net")
	sum := sha256.Sum256(append(boot, ns...))
	return binary.BigEndian.Uint64(sum[:])
}

func (e *Engine) now() time.Duration { return time.Since(e.start) }

// Ready is closed when heartbeats are sent.
func (e *Engine) Ready() <-chan struct{} { return e.up }

func (e *Engine) String() string { return "engine" }

// post makes the engine call f soon. It waits while many calls wait.
func (e *Engine) post(ctx context.Context, f func(now time.Duration)) {
	select {
	case e.calls <- f:
		e.wake()
	case <-ctx.Done():
	}
}

// postNow makes the engine call f soon, unless many calls wait.
func (e *Engine) postNow(f func(now time.Duration)) {
	select {
	case e.calls <- f:
		e.wake()
	default:
	}
}

func (e *Engine) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// It fails only when so many wake-ups wait that the engine runs anyway.
	_, _ = unix.Write(e.wakeFD, one[:])
}

// ask makes the engine call f and waits until it has.
func (e *Engine) ask(ctx context.Context, f func(now time.Duration)) error {
	done := make(chan struct{})
	e.post(ctx, func(now time.Duration) { f(now); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run drives the protocol until e.leave ends and the share is given away, or
// ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	e.realtime = raisePriority()
	if e.realtime != "" {
		e.log.Warn("load can look like death: the engine has no real-time priority", "why", e.realtime)
	}
	stop := context.AfterFunc(ctx, e.wake)
	defer stop()
	stopLeave := context.AfterFunc(e.leave, e.wake)
	defer stopLeave()
	close(e.up)
	e.locked(func() { e.nextTick = e.now() })
	for ctx.Err() == nil {
		var gone bool
		var until time.Duration
		e.locked(func() {
			gone = e.leaving()
			until = min(e.nextTick, e.core.Next()) - e.now()
		})
		if gone {
			return nil
		}
		if err := e.waiter.wait(until); err != nil {
			return err
		}
		e.locked(e.turn)
		e.done.Add(1)
	}
	return nil
}

func (e *Engine) locked(f func()) {
	e.turns.Lock()
	defer e.turns.Unlock()
	f()
}

// leaving gives the share away once that is asked for, and reports whether it
// is gone.
func (e *Engine) leaving() (gone bool) {
	if e.leave.Err() != nil && e.deadline == 0 {
		e.deadline = e.now() + leaveWithin
		e.core.Leave(e.now())
		e.perform()
	}
	if e.deadline == 0 || e.core.Gone() {
		return e.deadline != 0
	}
	if e.now() <= e.deadline {
		return false
	}
	e.log.Warn("left without having seen the share closed", "waited", leaveWithin)
	return true
}

// turn drains everything, then does what is due (H2).
func (e *Engine) turn() {
	var count [8]byte
	_, _ = unix.Read(e.wakeFD, count[:]) // EAGAIN when nobody woke us
	for range cap(e.calls) {
		select {
		case f := <-e.calls:
			f(e.now())
			e.perform()
			continue
		default:
		}
		break
	}
	for _, p := range e.paths {
		for range drainLimit {
			b, from := p.receive(e.in)
			if b == nil {
				break
			}
			p.received++
			e.receive(p, b, from)
			e.perform()
		}
	}
	switch now := e.now(); {
	case now >= e.nextTick:
		e.worstTick = max(e.worstTick, now-e.nextTick)
		e.nextTick = max(e.nextTick+e.interval, now+e.interval/2)
		if e.sleep.more() {
			e.core.Suspended(now)
			e.perform()
		}
		e.core.Tick(now)
	case now >= e.core.Next():
		e.core.Wake(now)
	}
	e.perform()
	e.follow()
	e.due.Store(int64(e.nextTick))
}

// receive opens one datagram, and gives it to the core.
func (e *Engine) receive(p *path, b []byte, from netip.AddrPort) {
	plain, _, _, err := e.opener.Open(e.plain[:0], b)
	if err != nil {
		p.refused++
		e.drops[err]++
		if isForeignKey(err) {
			e.foreign(p, from, "", whyKey)
		}
		return
	}
	e.plain = plain
	e.opened++
	m, err := e.decoder.Decode(plain)
	switch {
	case errors.Is(err, membership.ErrVersion):
		e.drops[err]++
		e.core.Foreign(e.now(), m)
		return
	case err != nil:
		e.drops[err]++
		return
	}
	if p.frame != nil && e.ofSibling(m) {
		return
	}
	if ours, name := e.ofOurs(m); !ours {
		e.foreign(p, from, name, whyCluster)
	} else if e.cloned(m) {
		e.foreign(p, from, "", whyClone)
	} else if from.IsValid() {
		e.learn(membership.From(m), from)
	} else if p.frame != nil {
		e.learnFrames(membership.From(m), e.in[6:12])
	}
	if p.frame != nil && bytes.Equal(e.in[:6], p.frame[:6]) {
		e.core.Frame(e.now(), m)
	}
	e.core.Receive(e.now(), m)
}

// perform does what the core asks for, in order.
func (e *Engine) perform() {
	for _, a := range e.core.Actions() {
		switch a.Kind {
		case membership.Arm:
			if e.filter == nil {
				continue
			}
			if err := e.filter.Arm(e.lives + a.N); err != nil {
				e.armErrors++
				if errors.Is(err, nft.ErrGone) {
					e.applier.verifySoon()
				}
			}
		case membership.Confirm:
			if e.filter == nil {
				continue
			}
			if err := e.filter.Confirm(e.lives + a.N); err != nil {
				e.confirmErrors++
			}
		case membership.Send:
			e.send(a.To, a.Message)
		case membership.Apply:
			e.apply(a)
		case membership.Barrier:
			e.barrier(a)
		case membership.Give:
			if e.barriers != nil {
				e.barriers.handshakes()
			}
		}
	}
	for len(e.later) > 0 {
		f := e.later[0]
		e.later = e.later[1:]
		f(e.now())
		e.perform()
	}
}

// barrier has syncd asked whether the connections are where they must be.
func (e *Engine) barrier(a membership.Action) {
	if e.barriers == nil {
		e.later = append(e.later, func(now time.Duration) { e.core.BarrierDone(now, a.N) })
		return
	}
	e.barriers.request(barrier{a.N, e.core.Name(a.To), a.Back})
}

func (e *Engine) apply(a membership.Action) {
	if e.applier == nil {
		e.later = append(e.later, func(now time.Duration) { e.core.Applied(now, a.Open, a.Rest, true) })
		return
	}
	e.applier.apply(applyRequest{a.Open, a.Rest, a.Gained})
}

// follow tells people, and the rest of the daemon, what has changed.
func (e *Engine) follow() {
	lead := e.core.Leads()
	if e.master.Swap(lead) != lead && lead {
		e.onLead()
	}
	if e.onHoldings != nil {
		e.holdings, e.lastHoldings = e.core.AppendHoldings(e.lastHoldings[:0]), e.holdings
		if !slices.Equal(e.holdings, e.lastHoldings) {
			e.onHoldings(e.holdings)
		}
	}
	happened := e.core.Events()
	for i := range happened {
		told := fromCore(&happened[i], e.unfit)
		e.log.Info(told.Text, "kind", told.Kind)
		e.events.add(told)
	}
}

func (e *Engine) close() error { return errors.Join(e.waiter.close(), unix.Close(e.wakeFD)) }
