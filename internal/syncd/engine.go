package syncd

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/ownership"
	"saru/internal/seal"
	"saru/internal/task"
	"saru/syncproto/peer"
)

// DefaultLimit is how many connections the mirror takes unless told otherwise.
const DefaultLimit = 4 << 20

const (
	// flushWindow is for how long news is gathered after news was sent. On a
	// quiet system nothing waits.
	flushWindow = 2 * time.Millisecond
	// flushChunk is how many records are handed to the session at once, and
	// how many that wait end a flush window early.
	flushChunk = 2048
	// injectChunk is how many entries are handed to the kernel at once: one
	// message to its backup thread.
	injectChunk = 255
	// injectAgain is how long to leave a kernel alone that does not take them.
	injectAgain = time.Second

	expireEvery   = time.Second
	servicesEvery = 2 * time.Second

	// Digests are made of what is older than digestAge, at multiples of
	// digestEvery by the cluster's clock.
	digestEvery = conntable.HorizonTick * time.Microsecond
	digestAge   = 2 * time.Second

	// agreePatience is for how long a joiner that has pulled everything waits
	// for a comparison that finds its table to be its peers'.
	agreePatience = 30 * time.Second

	// lateSlack is by how much directors' wall clocks may differ
	// (conntable.Table.RefuseLate).
	lateSlack = 12 * time.Hour
)

// Config says what an Engine needs. All fields but Limit, Saru, StartPeriod and
// Datagram are mandatory.
type Config struct {
	Node        string
	Keys        *seal.Keyring
	Transport   peer.Transport
	Log         *slog.Logger
	Limit       int           // of connections mirrored; 0: DefaultLimit
	Saru        string        // socket of the saru that knows what this director serves; "": none
	StartPeriod time.Duration // see peer.Config
	Datagram    int           // see peer.Config
}

// An Engine mirrors the kernel's connections to the peers and theirs to the
// kernel. It is a task.
type Engine struct {
	log     *slog.Logger
	node    string
	self    conntable.NodeID
	clock   *conntable.Clock
	born    atomic.Uint64 // by clock: our own versions below it are of an earlier life
	sure    atomic.Uint64 // by clock: those above it are of no other; 0: not known yet
	mono    monotonic
	table   *conntable.Table
	session *peer.Session
	kernel  Kernel

	toPeers  *queue
	toKernel *queue
	toLegacy *queue // nil without legacy directors
	finding  *finding
	up       chan struct{}
	synced   atomic.Bool
	horizon  atomic.Uint64 // of the newest digests
	started  time.Time

	capture    capture
	deliveries sync.Pool          // of *delivery: several goroutines deliver
	taken      []conntable.Record // injectSome's own
	undeleted  []conntable.Key    // likewise
	lately     lately

	captured   atomic.Uint64
	found      atomic.Uint64
	outcomes   [conntable.Outcomes]atomic.Uint64 // of the peers' records
	shed       atomic.Uint64                     // our own records that found the table full
	injected   atomic.Uint64
	outrun     atomic.Uint64 // newer state was here
	refused    atomic.Uint64 // the kernel did not take them
	reinjected atomic.Uint64
	expired    atomic.Uint64
	suppressed atomic.Uint64 // refreshes that the peers need not hear of
	retold     atomic.Uint64 // told since the peers would have let them die
	handshakes atomic.Uint64 // told since saru gave buckets away
	heldBack   atomic.Uint64 // records whose real server is unknown here
	services   atomic.Pointer[Services]
	servers    atomic.Pointer[servers] // of services
	templates  templates
	moved      moved
	saru       string // its socket, "" if it is not asked
	owner      ownership.Feed
	contests   atomic.Uint64 // peers' records against connections that are served here
	audit      *audit
	bridge     *Bridge // nil without legacy directors
	filter     atomic.Pointer[ServiceFilter]
	filtered   atomic.Uint64
	trace      tracer
	deferral   *deferral // nil if first packets are not held back
}

// New returns an Engine. The kernel is given to it by SetKernel before Run, so
// that a kernel that captures from the first moment has whom to tell.
func New(cfg Config) *Engine {
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	self := conntable.NodeIDOf(cfg.Node)
	table := conntable.New(cfg.Limit)
	e := &Engine{
		log: cfg.Log, node: cfg.Node, saru: cfg.Saru, self: self, clock: conntable.NewClock(self), mono: newMonotonic(),
		table: table, toPeers: newQueue(table, conntable.ToPeers), toKernel: newQueue(table, conntable.ToKernel),
		finding: newFinding(), up: make(chan struct{}), started: time.Now(),
	}
	e.deliveries.New = func() any { return new(delivery) }
	e.table.RefuseLate(e.clock, lateSlack)
	e.born.Store(e.clock.Now())
	e.audit = newAudit(e, threadCPU)
	e.session = peer.NewSession(peer.Config{
		Node: cfg.Node, Keys: cfg.Keys, Clock: e.clock, Transport: cfg.Transport, Log: cfg.Log,
		StartPeriod: cfg.StartPeriod, Datagram: cfg.Datagram,
		Received: func(sequence uint64) {
			if e.deferral != nil {
				e.deferral.received(sequence)
			}
		},
		Deliver: e.deliver, Ranked: e.table.Ranked, Walk: e.table.Walk, Len: e.table.Len,
	})
	return e
}

// SetKeys speaks with the peers by other keys from now on.
func (e *Engine) SetKeys(kr *seal.Keyring) { e.session.SetKeys(kr) }

// SetKernel says which kernel is mirrored.
func (e *Engine) SetKernel(k Kernel) { e.kernel = k }

// Run mirrors until ctx ends. First it takes in what the kernel holds already,
// so that peers that pull from us find it (found.go).
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.takeFound(ctx) })
	if !await(ctx, e.finding.first) {
		return g.Wait()
	}
	e.watchServices()
	g.Go(func() error { return e.session.Run(ctx) })
	g.Go(func() error { return e.flush(ctx) })
	g.Go(func() error { return e.inject(ctx) })
	g.Go(func() error { return e.giveReceipts(ctx) })
	g.Go(func() error { return e.join(ctx) })
	g.Go(func() error { return every(ctx, expireEvery, e.expire) })
	g.Go(func() error { return every(ctx, servicesEvery, e.watchServices) })
	g.Go(func() error { return every(ctx, templatesEvery, e.replaceTemplates) })
	g.Go(func() error { return e.audit.run(ctx) })
	g.Go(func() error { return e.tellInTime(ctx) })
	if e.saru != "" {
		g.Go(func() error { return e.followOwner(ctx) })
	}
	g.Go(func() error { return e.makeDigests(ctx) })
	g.Go(func() error {
		select {
		case <-e.session.Ready():
			close(e.up)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// Ready is closed when the engine mirrors; it may not be synced yet.
func (e *Engine) Ready() <-chan struct{} { return e.up }

func (e *Engine) String() string { return "engine" }

// Synced reports whether all that the reachable peers held when we joined is
// in the table and in the kernel.
func (e *Engine) Synced() bool { return e.synced.Load() }

// Resync pulls everything again from all peers, and waits until it is in the
// kernel. It returns how many peers were asked.
func (e *Engine) Resync(ctx context.Context) (int, error) {
	n, err := e.session.Resync(ctx)
	if err != nil {
		return n, err
	}
	return n, e.inKernel(ctx)
}

// join says that we are synced when we are: all that the peers held when we
// joined is in the table and in the kernel, and a comparison of digests has found
// nothing missing.
func (e *Engine) join(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.session.Joined():
	}
	if !await(ctx, e.finding.all) {
		return nil
	}
	if e.toKernel.flushed(ctx) != nil || !e.agree(ctx) || e.inKernel(ctx) != nil {
		return nil
	}
	e.synced.Store(true)
	e.session.SetSynced(true)
	e.log.Info("synced", "connections", e.table.Len(), "peers", len(e.session.Peers()),
		"after", time.Since(e.started).Round(time.Millisecond))
	return nil
}

// agree waits until the tables of the peers that are synced are ours too. It
// reports whether ctx is still alive.
func (e *Engine) agree(ctx context.Context) bool {
	patience := time.NewTimer(agreePatience)
	defer patience.Stop()
	for {
		compared := e.session.Compared()
		e.digest(e.horizon.Load()) // once more: what was pulled belongs to the past
		differ := e.session.Differ()
		if len(differ) == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-compared:
		case <-patience.C:
			if unread := e.session.Unread(); len(unread) > 0 {
				e.log.Warn("not synced: peers hold connections that cannot be pulled from them; is their TCP port open to us?", "peers", unread)
				patience.Reset(agreePatience)
				continue
			}
			if differ = e.session.Differ(); len(differ) > 0 {
				e.log.Warn("synced, although tables differ; repairs go on", "peers", differ)
			}
			return true
		}
	}
}

// expire drops what died. It also sees to it that no news shares a version that
// is older than a second, although nothing can be told.
func (e *Engine) expire() {
	e.clock.Turn()
	e.becomeSure()
	e.expired.Add(uint64(e.table.Expire()))
}

// makeDigests tells the peers a digest of the table from time to time.
func (e *Engine) makeDigests(ctx context.Context) error {
	const step, age = uint64(digestEvery / time.Microsecond), uint64(digestAge / time.Microsecond)
	for {
		horizon := (e.clock.Now()-age)/step*step + step
		if !task.Pause(ctx, digestAge+time.Duration(horizon-e.clock.Now())*time.Microsecond) {
			return nil
		}
		e.horizon.Store(horizon)
		e.digest(horizon)
	}
}

// digest tells the peers what the table was at horizon, 0 for none yet.
func (e *Engine) digest(horizon uint64) {
	var d conntable.Digests
	if horizon != 0 && e.table.Digests(horizon, &d) {
		e.session.SetDigests(horizon, &d)
	}
}

// every calls do each d until ctx ends.
func every(ctx context.Context, d time.Duration, do func()) error {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			do()
		}
	}
}
