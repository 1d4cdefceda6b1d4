package syncd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/metrics"
	"saru/ipvs/firstpacket"
)

// maxRecent bounds the connections that were told a moment ago and whose first
// packet did not come to us yet.
const maxRecent = 2 * firstpacket.Waiting

// A gate holds packets back (firstpacket.Gate).
type gate interface {
	Run(ctx context.Context) error
	Accept(id uint32) error
	SetTargets(targets map[netip.AddrPort]struct{}) error
	Restore() (bool, error)
	Close() error
}

// A deferral holds the first packet of a new connection back until a peer has
// its entry in the kernel, or for max: then the connection outlives this
// director from the moment on at which its real server first hears of it
// (pfsync's defer). It is a task.
//
//	IPVS makes the entry ── event ──► told to the peers, up to sequence n ── ask
//	the packet goes on to the gate ── held ──► receipt for n, or max ── accepted
//
// What must hold: nothing is held longer than max, nor more than
// firstpacket.Waiting packets, nor anything while no peer is heard or the
// kernel's first word of a connection comes too late anyway (without the module).
type deferral struct {
	log  *slog.Logger
	max  time.Duration
	gate gate

	// usable reports whether a peer could know before max has passed; known,
	// whether the mirror had the connection before.
	usable func() bool
	known  func(opening) bool

	mu      sync.Mutex
	waiting map[opening]*held
	order   []*held            // by arrival, thus by deadline; those that went are marked
	recent  map[opening]uint64 // told, but no packet came: up to which sequence
	aged    []opening          // recent by age
	given   uint64             // receipts came up to here
	wake    chan struct{}
	up      chan struct{} // closed

	deferred, acked, late, passed atomic.Uint64
}

// An opening is a connection as its first packet shows it: the client, and where
// the packet goes.
type opening struct{ client, target netip.AddrPort }

// held is a packet at the gate.
type held struct {
	opening
	ids      []uint32 // the client may send it again meanwhile
	sequence uint64   // a receipt for it lets the packet go; 0: not told yet
	deadline time.Time
	gone     bool
}

// DeferCounts says what became of first packets.
type DeferCounts struct {
	Held     uint64 `json:"held"`         // held back
	Acked    uint64 `json:"acknowledged"` // of them let go since a peer has the connection
	Late     uint64 `json:"late"`         // and since the time was over
	Passed   uint64 `json:"passed"`       // never held: known before, no peer, no module, or too many
	MaxMS    int64  `json:"max_ms"`
	Waiting  int    `json:"waiting"`
	InEffect bool   `json:"in_effect"` // there are a peer and the module
}

// openDeferral makes the gate. Run must follow.
func openDeferral(log *slog.Logger, limit time.Duration, usable func() bool, known func(opening) bool) (*deferral, error) {
	d := newDeferral(log, limit, usable, known)
	var err error
	d.gate, err = firstpacket.Open(d.arrived)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func newDeferral(log *slog.Logger, limit time.Duration, usable func() bool, known func(opening) bool) *deferral {
	up := make(chan struct{})
	close(up)
	return &deferral{
		log: log, up: up, max: limit, usable: usable, known: known,
		waiting: map[opening]*held{}, recent: map[opening]uint64{}, wake: make(chan struct{}, 1),
	}
}

// Run holds packets until ctx ends, and lets all go that wait then.
func (d *deferral) Run(ctx context.Context) error {
	defer d.letGo(func(*held) bool { return true }, &d.late)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.gate.Run(ctx) })
	g.Go(func() error { d.watchDeadlines(ctx); return nil })
	return g.Wait()
}

// Ready is closed at once: it is from the start as it stays.
func (d *deferral) Ready() <-chan struct{} { return d.up }

func (d *deferral) String() string { return "defer" }

// arrived takes a packet that the gate holds.
func (d *deferral) arrived(p firstpacket.Packet) {
	k := opening{p.Client, p.Target}
	if !d.usable() || !d.hold(k, p.ID) {
		d.passed.Add(1)
		d.accept(p.ID)
	}
}

// hold reports whether packet id of k is to wait.
func (d *deferral) hold(k opening, id uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.waiting[k]; h != nil {
		h.ids = append(h.ids, id)
		return true
	}
	sequence, told := d.recent[k]
	if told && sequence <= d.given || !told && d.known(k) || len(d.waiting) >= firstpacket.Waiting {
		return false
	}
	h := &held{opening: k, ids: []uint32{id}, sequence: sequence, deadline: time.Now().Add(d.max)}
	d.waiting[k] = h
	d.order = append(d.order, h)
	d.deferred.Add(1)
	if len(d.waiting) == 1 {
		d.kick()
	}
	return true
}

func (d *deferral) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// told notes that recs went to the peers, whose receipts for them reach
// sequence.
func (d *deferral) told(recs []conntable.Record, sequence uint64) {
	d.mu.Lock()
	for i := range recs {
		r := &recs[i]
		if r.Deleted || r.Template || r.Protocol != protoTCP {
			continue
		}
		waits := false
		for _, target := range [...]netip.AddrPort{r.Virtual, r.Dest} {
			if h := d.waiting[opening{r.Client, target}]; h != nil {
				waits = true
				if h.sequence == 0 {
					h.sequence = sequence
				}
			}
		}
		if !waits && r.State == tcpSynRecv {
			d.rememberLocked(opening{r.Client, r.Virtual}, sequence)
			d.rememberLocked(opening{r.Client, r.Dest}, sequence)
		}
	}
	given := d.given
	d.mu.Unlock()
	if given >= sequence {
		d.received(given)
	}
}

func (d *deferral) rememberLocked(k opening, sequence uint64) {
	if _, had := d.recent[k]; !had {
		if len(d.aged) >= maxRecent {
			delete(d.recent, d.aged[0])
			d.aged = d.aged[1:]
		}
		d.aged = append(d.aged, k)
	}
	d.recent[k] = sequence
}

// received takes a receipt: a peer's kernel has all that was sent up to
// sequence.
func (d *deferral) received(sequence uint64) {
	d.mu.Lock()
	d.given = max(d.given, sequence)
	d.mu.Unlock()
	d.letGo(func(h *held) bool { return h.sequence != 0 && h.sequence <= sequence }, &d.acked)
}

// letGo accepts the packets that which picks.
func (d *deferral) letGo(which func(*held) bool, count *atomic.Uint64) {
	var ids []uint32
	d.mu.Lock()
	for _, h := range d.order {
		if !h.gone && which(h) {
			h.gone = true
			delete(d.waiting, h.opening)
			ids = append(ids, h.ids...)
			count.Add(1)
		}
	}
	first := 0
	for first < len(d.order) && d.order[first].gone {
		first++
	}
	d.order = d.order[first:]
	d.mu.Unlock()
	for _, id := range ids {
		d.accept(id)
	}
}

func (d *deferral) accept(id uint32) {
	if err := d.gate.Accept(id); err != nil {
		d.log.Warn("let a first packet go", "err", err)
	}
}

// watchDeadlines lets packets go whose time is over, until ctx ends.
func (d *deferral) watchDeadlines(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		now := time.Now()
		d.letGo(func(h *held) bool { return !h.deadline.After(now) }, &d.late)
		d.mu.Lock()
		if len(d.order) > 0 {
			timer.Reset(time.Until(d.order[0].deadline))
		}
		d.mu.Unlock()
	}
}

// setTargets says what is held: what goes to these services, or real servers. It
// is called every two seconds, and mends then what others did to the gate.
func (d *deferral) setTargets(s *Services) error {
	again, err := d.gate.Restore()
	if err != nil {
		return err
	}
	if again {
		d.log.Warn("somebody changed the rules that hold first packets back; they are made again")
	}
	targets := map[netip.AddrPort]struct{}{}
	for t := range s.Targets {
		if t.Protocol == protoTCP || t.FWMark != 0 {
			targets[t.Dest] = struct{}{}
		}
		if t.Protocol == protoTCP && t.FWMark == 0 {
			targets[t.Virtual] = struct{}{}
		}
	}
	return d.gate.SetTargets(targets)
}

func (d *deferral) counts() *DeferCounts {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	waiting := len(d.waiting)
	d.mu.Unlock()
	return &DeferCounts{
		Held: d.deferred.Load(), Acked: d.acked.Load(), Late: d.late.Load(), Passed: d.passed.Load(),
		MaxMS: d.max.Milliseconds(), Waiting: waiting, InEffect: d.usable(),
	}
}

func (c *DeferCounts) scrape(s *metrics.Sink) {
	if c == nil {
		return
	}
	s.Flag("defer_in_effect", "1 if first packets are held back: there are a peer and the module.", c.InEffect)
	s.Gauge("defer_max_seconds", "How long a first packet may be held back.", float64(c.MaxMS)/1000)
	s.Gauge("defer_waiting", "First packets that are held back now.", float64(c.Waiting))
	s.Counter("defer_held_total", "First packets that were held back.", c.Held)
	s.Counter("defer_acknowledged_total", "First packets let go since a peer has the connection.", c.Acked)
	s.Counter("defer_late_total", "First packets let go since the time was over.", c.Late)
	s.Counter("defer_passed_total", "First packets that were not held back: known before, no peer, no module, or too many.", c.Passed)
}

func (c *DeferCounts) print(w io.Writer) {
	if c == nil {
		return
	}
	fmt.Fprintf(w, "  defer        %s held back, %d of them until a peer had the connection, %d for all of %d ms; %d passed, %d waiting\n",
		number(int(c.Held), "first packet"), c.Acked, c.Late, c.MaxMS, c.Passed, c.Waiting)
	if !c.InEffect {
		fmt.Fprintf(w, "  DEFER IS NOT IN EFFECT: no peer is heard, or the kernel module is not loaded\n")
	}
}

func (d *deferral) close() error { return d.gate.Close() }

// deferFirst makes the Engine hold first packets back, for at most limit.
func (e *Engine) deferFirst(limit time.Duration) (err error) {
	usable := func() bool {
		s, ok := e.kernel.(*source)
		return (!ok || s.now.Load().module != nil) && e.session.Hearing()
	}
	known := func(k opening) bool {
		// Under direct routing the target is the virtual address.
		var r conntable.Record
		key := conntable.Key{Client: k.client, Virtual: k.target, Protocol: protoTCP}
		return e.table.Lookup(key, &r) && !r.Deleted && time.Duration(e.clock.Now()-min(r.Version.Clock, e.clock.Now()))*time.Microsecond > limit
	}
	e.deferral, err = openDeferral(e.log, limit, usable, known)
	return err
}

// tellAndAsk sends recs to the peers, and asks for a receipt if somebody may
// wait for one.
func (e *Engine) tellAndAsk(recs []conntable.Record) {
	e.session.Send(recs)
	if e.deferral != nil {
		e.deferral.told(recs, e.session.Ask())
	}
}

// giveReceipts tells peers when the kernel was told what they sent, until ctx
// ends. It does not wait for Kernel.Settle: they ask with each flush, and that
// would hold up what comes behind.
func (e *Engine) giveReceipts(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-e.session.Asked():
			if err := e.toKernel.flushed(ctx); err != nil {
				return unlessEnded(ctx, err)
			}
			e.session.Give(r)
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
