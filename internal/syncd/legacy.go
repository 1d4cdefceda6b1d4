package syncd

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/task"
	"saru/syncproto/legacy"
)

// legacyNode is whose versions legacy directors' words get.
var legacyNode = conntable.LegacyNode

const (
	// legacyLag is how old a legacy director's word may be when it comes.
	legacyLag = conntable.LegacyLag

	// A legacy director tells of a busy connection many times a second. What
	// is not news is worth telling the peers only if it lengthens the
	// connection's life by this, or by half of it.
	legacyRefresh = 30 * time.Second

	// Legacy directors can say any timeout. What is longer is cut.
	legacyLongest         = 24 * time.Hour
	legacyLongestTemplate = 31 * 24 * time.Hour

	// No more than legacyChunk records go out in a legacyTick, and while
	// everything is told again, legacyAgain of them: the kernel's thread has
	// room for 90 datagrams of 40 by default, and nothing tells whether it
	// keeps up.
	legacyTick  = 10 * time.Millisecond
	legacyChunk = 320
	legacyAgain = 50
)

// legacyTemplateTimeout is what the kernel gives a template of which no
// timeout was told (ip_vs_sync.c, ip_vs_proc_conn: 3 * 60 * HZ).
const legacyTemplateTimeout = 3 * time.Minute

// A LegacyLink is where legacy directors are (legacy.Link).
type LegacyLink interface {
	task.Task
	Send(conns []conntable.Connection) (int, error)
	Stats() legacy.Stats
}

// A Bridge joins the mirror with directors that speak the kernel's own sync
// protocol. It is a task.
//
// What they say is given a version of legacyNode, legacyLag ago, so that it
// never takes the place of what this director or a peer knew to be newer, and
// goes to our kernel and the peers like a peer's news. What this director's
// kernel tells goes to them at once, and from time to time again, since nothing
// there repairs what was lost. Each director tells its own; what legacy
// directors said is never told to them.
type Bridge struct {
	LegacySettings
	e     *Engine
	log   *slog.Logger
	link  LegacyLink
	known legacyServices
	up    chan struct{}

	taken, old, same, stranger, strange, full, served atomic.Uint64
	refreshed, passes                                 atomic.Uint64
}

// NewBridge makes e speak with legacy directors. It must be called before e
// runs. The link delivers to Heard.
func NewBridge(e *Engine, s LegacySettings) *Bridge {
	e.toLegacy = newQueue(e.table, conntable.ToLegacy)
	b := &Bridge{LegacySettings: s, e: e, log: e.log, up: make(chan struct{})}
	e.bridge = b
	return b
}

// SetLink says where the legacy directors are, before Run.
func (b *Bridge) SetLink(l LegacyLink) { b.link = l }

// Run hears and tells until ctx ends.
func (b *Bridge) Run(ctx context.Context) error {
	f := b.e.finding
	if !await(ctx, f.first) {
		return nil
	}
	late := !f.read.Load()
	if late {
		b.log.Info("legacy directors are heard, and told, when the kernel's table is read")
		close(b.up)
	}
	if !await(ctx, f.all) {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.link.Run(ctx) })
	g.Go(func() error { return b.tell(ctx) })
	if !late {
		g.Go(func() error {
			if await(ctx, b.link.Ready()) {
				close(b.up)
			}
			return nil
		})
	}
	return g.Wait()
}

// Ready is closed when legacy directors are heard; or, where the kernel's table
// takes minutes to read, before that: who starts us does not wait for so long.
func (b *Bridge) Ready() <-chan struct{} { return b.up }

func (b *Bridge) String() string { return "legacy bridge" }

// Heard takes what a legacy director told; nothing of c is kept.
func (b *Bridge) Heard(c *conntable.Connection) {
	r := conntable.Record{Connection: *c}
	if !legacySound(&r) {
		b.strange.Add(1)
		return
	}
	keyCall(&r.Connection)
	if !b.e.wants(c) {
		return
	}
	if !b.known.has(b.e.services.Load(), c) {
		b.stranger.Add(1)
		return
	}
	var have conntable.Record
	switch found := b.e.table.Lookup(r.Key, &have); {
	case found && sameTelling(&have, &r):
		b.same.Add(1)
		return
	case !found && b.e.entries() >= b.e.table.Limit()/10*9:
		b.full.Add(1) // the last tenth is for what came with a key
		return
	}
	b.merge(&r, &have)
}

// merge takes r in; have is what was known of its key, if anything.
func (b *Bridge) merge(r, have *conntable.Record) {
	if r.Seq != nil {
		r.Seq = &conntable.SeqPair{In: r.Seq.In, Out: r.Seq.Out}
	}
	r.PEData = slices.Clone(r.PEData)
	r.Version = conntable.Version{Clock: b.e.clock.Next().Clock - uint64(legacyLag/time.Microsecond), Node: legacyNode}
	var old conntable.Record
	if b.e.contested(r, &old) {
		b.served.Add(1)
		return
	}
	res := b.e.table.Apply(r, conntable.ToKernel|conntable.ToPeers)
	if b.e.trace.on() {
		b.e.trace.merged(PathLegacyHeard, r, &res)
	}
	switch res.Outcome {
	case conntable.Added, conntable.Updated:
		b.taken.Add(1)
	case conntable.Stale, conntable.Same:
		b.old.Add(1)
	case conntable.Full:
		b.full.Add(1)
	}
	if r.Template && res.Outcome == conntable.Updated && !have.Deleted && have.Dest != r.Dest && !b.e.servedHere(r) {
		b.e.replaceTemplate(have.Connection)
	}
	if b.e.nothingNew(r, &res) {
		res.Queued &^= conntable.ToKernel
	}
	b.e.queued(res)
}

// legacySound makes a legacy director's word a record of ours, and reports
// whether it can be one.
func legacySound(r *conntable.Record) bool {
	r.Flags &= conntable.FlagBackupMask
	if r.Flags&conntable.FlagFwdMask > conntable.FlagFwdBypass {
		return false // the kernel has no way to forward so
	}
	longest := legacyLongest
	if r.Template {
		longest = legacyLongestTemplate
	}
	if r.Timeout == 0 {
		r.Timeout = legacyTimeout(r)
	}
	r.Timeout = min(r.Timeout, longest)
	r.Remaining = r.Timeout
	return true
}

// legacyTimeout is what the kernel gives an entry of which it was told none.
func legacyTimeout(r *conntable.Record) time.Duration {
	if r.Template {
		return legacyTemplateTimeout
	}
	if t := defaultTimeout(r.Protocol, r.State); t > 0 {
		return t
	}
	return silentTimeout
}

// sameTelling reports whether r tells nothing of worth beside have.
func sameTelling(have, r *conntable.Record) bool {
	return !have.Deleted && have.Version.Node == legacyNode && have.Dest == r.Dest && have.State == r.State &&
		have.Flags&conntable.FlagBackupMask == r.Flags && have.Seq == nil && r.Seq == nil &&
		have.Remaining > r.Remaining-min(legacyRefresh, r.Remaining/2)
}

// legacyServices knows which addresses and marks are of services here, as of
// the last list of them. Without a key, nobody may make this director forward
// anything to where its own configuration does not.
type legacyServices struct {
	of     *Services
	vips   map[netip.Addr]struct{}
	dests  map[netip.Addr]struct{}
	fwmark map[uint32]struct{}
}

// has reports whether c is of a service here, to one of the real servers here.
// Ports are not compared: those of an FTP data connection, or of a template,
// are not the service's.
func (k *legacyServices) has(now *Services, c *conntable.Connection) bool {
	if now == nil {
		return false
	}
	if now != k.of {
		k.read(now)
	}
	if _, ok := k.dests[c.Dest.Addr()]; !ok {
		return false
	}
	if _, ok := k.vips[c.Virtual.Addr()]; ok {
		return true
	}
	mark := markOf(c)
	_, ok := k.fwmark[mark]
	return ok && mark != 0
}

func (k *legacyServices) read(now *Services) {
	*k = legacyServices{now, map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}, map[uint32]struct{}{}}
	for t := range now.Targets {
		k.dests[t.Dest.Addr()] = struct{}{}
		if t.FWMark != 0 {
			k.fwmark[t.FWMark] = struct{}{}
		} else {
			k.vips[t.Virtual.Addr()] = struct{}{}
		}
	}
}

// tell sends legacy directors what happens here, and everything of ours again
// and again, first when Run starts: news at once, no faster than they take it.
func (b *Bridge) tell(ctx context.Context) error {
	tick := time.NewTicker(legacyTick)
	defer tick.Stop()
	w := legacyWalk{b: b, next: time.Now()}
	var refs, rest []conntable.Ref
	conns := make([]conntable.Connection, 0, legacyChunk+legacyAgain)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if len(rest) == 0 {
			refs = b.e.toLegacy.swap(refs)
			rest = refs
		}
		n := min(len(rest), legacyChunk)
		conns = b.news(rest[:n], conns[:0])
		rest = rest[n:]
		b.e.toLegacy.finish(n)
		conns = w.step(conns)
		if len(conns) == 0 {
			continue
		}
		if _, err := b.link.Send(conns); err != nil {
			b.log.Debug("tell legacy directors", "err", err) // counted; told again later
		}
	}
}

// news appends to conns what is behind refs.
func (b *Bridge) news(refs []conntable.Ref, conns []conntable.Connection) []conntable.Connection {
	var r conntable.Record
	for _, ref := range refs {
		// What a peer, or a legacy director, told since is theirs to tell.
		if b.e.table.Take(ref, conntable.ToLegacy, &r) && r.Version.Node == b.e.self {
			if b.e.trace.on() {
				b.e.trace.told(PathLegacyTold, &r)
			}
			conns = append(conns, forLegacy(&r))
		}
	}
	return conns
}

// forLegacy returns r as a legacy director is told it. A deleted connection is
// told as a closed one that has a second to live.
func forLegacy(r *conntable.Record) conntable.Connection {
	c := forKernel(r)
	if r.Deleted {
		c.Timeout = time.Second
		if !c.Template && c.Protocol == protoTCP {
			c.State, c.Flags = tcpClose, c.Flags|conntable.FlagInactive
		}
	}
	return c
}

// A legacyWalk goes through the table, at its own pace, and begins anew when
// the time has come.
type legacyWalk struct {
	b      *Bridge
	next   time.Time // when the next pass begins, while none is under way
	on     bool
	cursor conntable.Cursor
	recs   [legacyAgain]conntable.Record
}

// step appends some connections of this director to conns.
func (w *legacyWalk) step(conns []conntable.Connection) []conntable.Connection {
	now := time.Now()
	if !w.on {
		if now.Before(w.next) {
			return conns
		}
		w.on, w.next, w.cursor = true, now.Add(w.b.Resend), conntable.Cursor{}
	}
	n := w.b.e.table.Walk(&w.cursor, nil, w.recs[:])
	if n == 0 {
		w.on = false
		w.b.passes.Add(1)
		return conns
	}
	for i := range w.recs[:n] {
		if r := &w.recs[i]; w.b.worthRepeating(r) {
			conns = append(conns, forLegacy(r))
			w.b.refreshed.Add(1)
		}
	}
	return conns
}

// worthRepeating reports whether r is this director's to tell again. What was
// found in the kernel at start is, if it was made by a packet here. But nothing
// is in the second half of its life: the legacy director may serve it by now, and
// its kernel takes for its life what it is told, and a template's is the whole
// timeout.
func (b *Bridge) worthRepeating(r *conntable.Record) bool {
	if r.Deleted || r.Version.Node != b.e.self || r.Version.Clock < conntable.LiveClock && r.Flags&conntable.FlagSync != 0 {
		return false
	}
	return r.Remaining > r.Timeout/2
}
