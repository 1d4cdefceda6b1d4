package director

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"saru/membership"
	"saru/partition"
	"saru/partition/nft"
)

const (
	verifyEvery = time.Second
	// settleFor is for how long connections of buckets just gained that the
	// kernel does not know are met with silence: their state may still come.
	settleFor = 5 * time.Second
	// movedFor is the same where another director gives the bucket: as long as
	// that one may go on with what it alone knows, and its last news may need.
	movedFor = membership.DefaultLinger + membership.DefaultBarrierWait + time.Second
)

// An applier makes the kernel's bucket sets what the engine asks for, and sees
// that they stay so. It may wait for other people's transactions; the engine
// does not. It is a task.
type applier struct {
	log      *slog.Logger
	filter   Filter
	backstop bool
	engine   *Engine
	requests chan applyRequest
	verify   chan struct{}
	was      nft.Desired // as last read back
	up       chan struct{}

	resets uint64 // owned by the engine
}

type applyRequest struct{ open, rest, gained partition.Set }

func newApplier(log *slog.Logger, f Filter, backstop bool, e *Engine) *applier {
	return &applier{
		log: log, filter: f, backstop: backstop, engine: e,
		requests: make(chan applyRequest, 1), verify: make(chan struct{}, 1), up: make(chan struct{}),
	}
}

// apply asks for one change. The core asks for one at a time, so this never
// waits.
func (a *applier) apply(r applyRequest) { a.requests <- r }

// verifySoon has the table looked at now.
func (a *applier) verifySoon() {
	select {
	case a.verify <- struct{}{}:
	default:
	}
}

// Ready is closed when requests are served.
func (a *applier) Ready() <-chan struct{} { return a.up }

func (a *applier) String() string { return "filter" }

// Run serves until ctx ends.
func (a *applier) Run(ctx context.Context) error {
	tick := time.NewTicker(verifyEvery)
	defer tick.Stop()
	close(a.up)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-a.requests:
			is, known := a.change(r)
			a.engine.post(ctx, func(now time.Duration) { a.engine.core.Applied(now, is.Open, is.Rest, known) })
		case <-a.verify:
			a.look(ctx)
		case <-tick.C:
			a.look(ctx)
		}
	}
}

// change applies one request, and returns what is admitted afterwards and
// whether that is known.
func (a *applier) change(r applyRequest) (is nft.Desired, known bool) {
	a.settle(r)
	start := time.Now()
	want := nft.Desired{Open: r.open, Rest: r.rest}
	err := a.filter.Apply(want)
	a.log.Debug("share", "open", r.open, "rest", r.rest, "took", time.Since(start), "err", err)
	switch {
	case err == nil:
		a.was = want
		return a.was, true
	case errors.Is(err, nft.ErrGone):
		return a.reset(err)
	case errors.Is(err, nft.ErrUnknown):
		a.log.Error("the share's state in the kernel is not known; nothing is confirmed until it is", "err", err)
		return nft.Desired{}, false
	}
	a.log.Error("the share was not changed", "err", err)
	return a.was, true
}

// settle silences unknown connections of buckets that are new here, before the
// buckets are taken, so that no packet of theirs meets a reset. Rest counts as
// much as open: a handshake that began at the giver goes on here too.
func (a *applier) settle(r applyRequest) {
	if !a.backstop {
		return
	}
	moved := r.rest.Minus(a.was.Rest).Minus(r.gained).Union(r.gained.Intersect(a.was.Rest))
	lapsed := r.gained.Minus(a.was.Rest)
	for _, f := range []struct {
		buckets partition.Set
		d       time.Duration
	}{{moved, movedFor}, {lapsed, settleFor}} {
		if f.buckets.Empty() {
			continue
		}
		if err := a.filter.Settle(&f.buckets, f.d); err != nil {
			a.log.Warn("connections of new buckets may be reset", "err", err)
		}
	}
}

// reset puts a closed table in place of one that somebody else changed.
func (a *applier) reset(why error) (is nft.Desired, known bool) {
	if err := a.filter.Reset(); err != nil {
		a.log.Error("the table was changed by somebody else and cannot be replaced", "err", err)
		return nft.Desired{}, false
	}
	a.log.Warn("the table was changed by somebody else; it is closed and opens again when granted", "why", why)
	a.engine.events.note(eventFilter, "somebody else changed the kernel's table (%v); it is closed, and opens again when granted", why)
	a.was = nft.Desired{}
	return a.was, true
}

var errForeignChange = errors.New("not as this daemon left it")

func (a *applier) look(ctx context.Context) {
	ok, err := a.filter.Verify()
	if ok {
		return
	}
	if err == nil {
		err = errForeignChange
	}
	if _, known := a.reset(err); known {
		a.engine.post(ctx, func(now time.Duration) {
			a.resets++
			a.engine.core.Lost(now)
		})
	}
}
