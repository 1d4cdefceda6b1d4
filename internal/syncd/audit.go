package syncd

import (
	"context"
	"runtime"
	"sync"
	"time"

	"saru/conntable"
	"saru/internal/ownership"
	"saru/internal/task"
	"saru/syncproto/kernelsync"
)

const (
	// auditShare is how much of one core the audit takes, and auditBurst what
	// it may take at once: its share of a minute.
	auditShare = 0.02
	auditBurst = time.Minute / 50
	// auditEvery is the pause between two passes, if the share allows it. It
	// is shorter than the kernel's timeout of a TCP connection that was reset
	// (10 s), so that in a table that is read fast a server's reset is seen as
	// such.
	auditEvery = 5 * time.Second
	// missedOften is in how many passes in a row an entry that is active here
	// must be missing to be believed gone. A pass that passes over one in
	// twenty entries, as one of a small table does on a machine that stands
	// still for tenths of a second, names a living one once in 10^10 times.
	missedOften = 8

	// settle is for how long the mirror and the kernel may differ for no other
	// reason than that news is under way between them.
	settle = 2 * time.Second
	// exact is by how much they may differ on when an entry dies: the kernel
	// tells whole seconds, and forKernel rounds up.
	exact = 3 * time.Second
	// dying is what remains of an entry that is not worth a word any more.
	dying = 3 * time.Second

	// maxSuspects bounds the entries that are remembered from one pass to the
	// next; those beyond it have to wait for a later pass.
	maxSuspects = 1 << 16
)

// An audit compares the kernel's table with the mirror, again and again, at
// the cost of auditShare of one core. Of an entry that is active here the
// kernel is right, and what it did not tell is news: that a server reset the
// connection or kept it alive, that it expired, or was there all along. Of all
// others the mirror is right, and the kernel is told again what it lost.
//
// The kernel's table is read in slices. When entries go meanwhile, as the
// heartbeat's do all the time, others are passed over. So one that was not
// seen twice is told to the kernel again if it is a peer's, which does no harm
// if it was there; but one of ours is believed to be gone only when it was
// missing in missedOften passes.
type audit struct {
	e     *Engine
	pacer *pacer

	began   uint64            // by the clock: this pass
	at      conntable.Version // what the present slice tells is of this version
	calm    bool              // nothing waits to be injected
	seen    *seen
	entries int
	held    int
	cost    time.Duration // CPU time of the last pass

	// Entries to be seen the same again, and how often they were: those that
	// the kernel lacked, or has with another real server, and those of its that
	// the mirror lacks.
	missing, strange *suspects

	mu     sync.Mutex
	counts AuditCounts
}

// AuditCounts says what comparing the kernel's table with the mirror found.
type AuditCounts struct {
	Passes     uint64  `json:"passes"`
	PassS      float64 `json:"pass_s"`     // how long the last pass took
	CPUShare   float64 `json:"cpu_share"`  // of one core since the start; at most 0.02 in the long run
	Entries    int     `json:"entries"`    // of the kernel's table in the last pass
	Held       int     `json:"held"`       // of the mirror, since the kernel does not know their real server
	Told       uint64  `json:"told"`       // states that the kernel had not told, now told to the peers
	Gone       uint64  `json:"gone"`       // connections that ended in the kernel without a word
	Reinjected uint64  `json:"reinjected"` // that the kernel lacked or had older
	Deleted    uint64  `json:"deleted"`    // that the kernel had kept
	CutShort   uint64  `json:"cut_short"`  // passes that ended with an error
	LastError  string  `json:"last_error,omitempty"`
}

func newAudit(e *Engine, cpu func() time.Duration) *audit {
	return &audit{e: e, pacer: newPacer(auditShare, auditBurst, cpu), missing: newSuspects(), strange: newSuspects()}
}

// run audits until ctx ends, from when we are synced: before that the mirror
// is not complete.
func (a *audit) run(ctx context.Context) error {
	runtime.LockOSThread() // whose CPU time is counted
	defer runtime.UnlockOSThread()
	a.pacer.start()
	for task.Pause(ctx, auditEvery) {
		if a.e.Synced() && a.pacer.afford(ctx, a.cost) {
			a.pass(ctx)
		}
	}
	return nil
}

func (a *audit) pass(ctx context.Context) {
	e := a.e
	start, used := time.Now(), a.pacer.used
	a.began, a.entries, a.held = e.clock.Now(), 0, 0
	a.seen = newSeen(e.table.Len() + e.table.Tombstones())
	a.missing.turn()
	a.strange.turn()
	err := e.kernel.Entries(func() error {
		if !a.pacer.afford(ctx, 0) {
			return ctx.Err()
		}
		// What is captured from here on is newer than what is read.
		a.at, a.calm = e.clock.Next(), e.toKernel.idle()
		return nil
	}, a.entry)
	if err == nil && ctx.Err() == nil {
		a.lookForMissing(ctx)
	}
	a.pacer.account()
	a.cost = a.pacer.used - used
	a.seen = nil
	a.count(start, err)
}

func (a *audit) count(start time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.counts
	c.PassS, c.Entries, c.Held = time.Since(start).Seconds(), a.entries, a.held
	c.CPUShare = a.pacer.used.Seconds() / max(1, time.Since(a.e.started).Seconds())
	c.Passes, c.LastError = c.Passes+1, ""
	if err != nil {
		c.CutShort, c.LastError = c.CutShort+1, err.Error()
	}
}

func (a *audit) add(n *uint64) {
	a.mu.Lock()
	*n++
	a.mu.Unlock()
}

// Counts returns what was found so far.
func (a *audit) Counts() AuditCounts {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts
}

// entry compares an entry of the kernel's with the mirror.
func (a *audit) entry(k *Entry) {
	a.entries++
	keyCall(&k.Connection)
	if !a.e.takes(&k.Connection) {
		return
	}
	a.seen.add(&k.Key)
	if k.Torn {
		return // newer state may be known by now
	}
	var r conntable.Record
	known := a.e.table.Lookup(k.Key, &r)
	if !known {
		a.unknown(k)
		return
	}
	if !a.settled(&r, a.at.Clock) || k.Remaining <= dying {
		return
	}
	switch here, sure := a.e.activeHere(&r); {
	case !sure:
	case !here:
		a.mirrorIsRight(k, &r)
	case a.calm || r.Version.Node == a.e.self:
		a.kernelIsRight(k, &r)
	}
}

// settled reports whether r was old enough at clock to be in the kernel, or to
// have come from it.
func (a *audit) settled(r *conntable.Record, clock uint64) bool {
	return r.Version.Clock+uint64(settle/time.Microsecond) < clock
}

// unknown takes in an entry that the kernel should have told of, but has not
// within a pass. A template that came by sync is a peer's that died there, and
// was told to live too long (forKernel).
func (a *audit) unknown(k *Entry) {
	whose, _ := a.e.owner.Of(time.Now(), &k.Key)
	injected := k.Synced && whose != ownership.Here // and not taken over since
	switch {
	case k.Remaining <= dying:
	case injected && k.Template && a.e.table.Shed() == 0:
		if a.strange.again(&k.Key) >= 2 {
			a.delete(k)
		}
	case injected || !tellable(k):
	case a.strange.again(&k.Key) >= 2:
		a.e.take(k, a.e.newsFor())
		a.add(&a.counts.Told)
	}
}

// kernelIsRight makes news of what the kernel did with an entry of ours.
func (a *audit) kernelIsRight(k *Entry, r *conntable.Record) {
	switch longer := k.Remaining - r.Remaining; {
	case !tellable(k):
	case r.Deleted && r.Version.Node != a.e.self && !a.usedSince(k, r): // before it came here
		a.delete(k)
	case r.Deleted || k.Dest != r.Dest || k.State != r.State:
		a.tell(k, r, k.Timeout)
	case longer > exact && (!a.e.vouched(r) || r.Timeout < heldFrom(a.e.entries())):
		a.tell(k, r, k.Timeout) // a round could come too late
	case longer > exact:
		// The server alone kept it alive. The peers are told in time.
		a.e.table.Extend(k.Key, k.Remaining)
	case longer < -exact:
		// What the peers were told was too long by the difference: the
		// version and the timeout must say when it dies (refresh.go).
		timeout := k.Remaining
		if k.Template {
			timeout = r.Timeout
		}
		a.tell(k, r, timeout)
	}
}

// usedSince reports whether packets came to an entry of the kernel's after r was
// told: it is not that one, or lives on. What is told to the kernel begins with
// what remains, as if it had been idle for the rest of its timeout.
func (a *audit) usedSince(k *Entry, r *conntable.Record) bool {
	told := time.Duration(a.at.Clock-min(r.Version.Clock, a.at.Clock)) * time.Microsecond
	return !k.Template && k.Remaining <= k.Timeout && k.Timeout-k.Remaining+exact < told
}

// tell makes news of an entry, as of when the slice was read. What /proc does
// not show stays as it was.
func (a *audit) tell(k *Entry, r *conntable.Record, timeout time.Duration) {
	n := *r
	n.Version, n.Deleted, n.Dest, n.State, n.Remaining = a.at, false, k.Dest, k.State, k.Remaining
	if k.Template && !r.Deleted && k.Dest == r.Dest && a.e.vouched(r) && a.e.told(r) > 0 {
		// The same choice as before: one that another director made later
		// outranks it. The kernel marks templates as assured without a word
		// (include/net/ip_vs.h, ip_vs_control_assure_ct).
		timeout = r.Timeout
		n.Version = conntable.Version{Clock: r.Version.Clock + 1, Node: r.Version.Node}
	}
	n.Timeout = max(timeout, k.Remaining)
	const counted = conntable.FlagInactive
	n.Flags = n.Flags&^counted | k.Flags&counted
	if r.Deleted {
		n.Connection.Flags = k.Flags
	}
	if k.Protocol != protoTCP && k.Dest != r.Dest {
		// A peer's kernel puts the new real server in the other's place, which
		// it does not for an inactive entry (net/netfilter/ipvs/ip_vs_sync.c,
		// ip_vs_proc_conn); UDP's always are.
		n.Flags &^= counted
	}
	a.e.queued(a.e.table.Apply(&n, a.e.newsFor()))
	a.add(&a.counts.Told)
}

// elsewhere reports whether saru says that another director serves k.
func (a *audit) elsewhere(k *Entry) bool {
	whose, _ := a.e.owner.Of(time.Now(), &k.Key)
	return whose == ownership.Elsewhere
}

// mirrorIsRight tells the kernel again what it has not, of an entry of a
// peer's. An entry that lives longer than it should in the kernel does no harm.
func (a *audit) mirrorIsRight(k *Entry, r *conntable.Record) {
	switch {
	case r.Deleted && tellable(k) && a.usedSince(k, r) && !a.elsewhere(k):
		a.tell(k, r, k.Timeout)
	case r.Deleted:
		a.delete(k)
	case a.e.held(r):
	case !tellable(k) && ended(&r.Connection):
		// A client that uses its port again has begun a handshake here, of which
		// nobody tells.
	case k.Template && k.Dest != r.Dest:
		a.e.replaceTemplate(k.Connection)
	case k.Dest != r.Dest && a.missing.again(&k.Key) >= 2: // that is no news under way
		a.e.moved.note(k.Key)
		a.reinject(&r.Key)
	case k.Dest != r.Dest || k.State != r.State || k.Remaining < r.Remaining-exact:
		a.reinject(&r.Key)
	}
}

func (a *audit) delete(k *Entry) {
	if a.e.delete(k.Connection) == nil {
		a.add(&a.counts.Deleted)
	}
}

func (a *audit) reinject(k *conntable.Key) {
	if a.e.tellKernel(k) {
		a.e.reinjected.Add(1)
		a.add(&a.counts.Reinjected)
	}
}

// lookForMissing looks for entries of the mirror that the kernel has not.
func (a *audit) lookForMissing(ctx context.Context) {
	var c conntable.Cursor
	recs := make([]conntable.Record, auditChunk)
	for a.pacer.afford(ctx, 0) {
		n := a.e.table.Walk(&c, nil, recs)
		if n == 0 {
			return
		}
		for i := range n {
			if r := &recs[i]; !r.Deleted && !isCall(&r.Key) && a.e.takes(&r.Connection) && r.Remaining > dying && a.settled(r, a.began) && !a.seen.has(&r.Key) {
				a.lacks(r)
			}
		}
	}
}

const auditChunk = 256

// lacks deals with an entry that the kernel was not seen to have.
func (a *audit) lacks(r *conntable.Record) {
	e := a.e
	here, sure := e.activeHere(r)
	if !here {
		switch {
		case !sure:
		case e.held(r):
			a.held++
		case !e.replacingTemplate(&r.Key) && a.missing.again(&r.Key) >= 2:
			a.reinject(&r.Key)
		}
		return
	}
	if a.missing.again(&r.Key) < missedOften {
		return
	}
	if r.Version.Clock < conntable.LiveClock {
		return // nobody vouches for it; it dies by itself
	}
	if e.neverHere(r) {
		a.held++
		return
	}
	if r.Version.Node != e.self {
		// Ours since a moment ago, and the kernel never had it: nothing that
		// is newer can be overwritten.
		a.reinject(&r.Key)
		return
	}
	e.queued(e.table.DeleteIf(r, e.clock.Next(), e.newsFor()))
	a.add(&a.counts.Gone)
}

// tellable reports whether the kernel's sync threads would tell of an entry in
// this state (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_sync_conn_needed).
func tellable(k *Entry) bool {
	if k.Template {
		return true
	}
	switch k.Protocol {
	case kernelsync.ProtoTCP:
		return 1<<k.State&(1<<1|1<<4|1<<5|1<<6|1<<7) != 0 // ESTABLISHED, FIN_WAIT, TIME_WAIT, CLOSE, CLOSE_WAIT
	case kernelsync.ProtoSCTP:
		return 1<<k.State&(1<<8|1<<9|1<<10|1<<11|1<<13) != 0 // ESTABLISHED, SHUTDOWN_..., CLOSED
	}
	return true
}

// suspects counts in how many passes in a row a key was named.
type suspects struct {
	before, now map[conntable.Key]int
}

func newSuspects() *suspects { return &suspects{now: map[conntable.Key]int{}} }

// turn begins a pass.
func (s *suspects) turn() { s.before, s.now = s.now, map[conntable.Key]int{} }

// again names k, and returns how often it was by now.
func (s *suspects) again(k *conntable.Key) int {
	n := s.before[*k] + 1
	if len(s.now) < maxSuspects {
		s.now[*k] = n
	}
	return n
}
