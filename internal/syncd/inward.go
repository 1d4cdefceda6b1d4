package syncd

import (
	"context"
	"time"

	"saru/conntable"
	"saru/internal/task"
)

// refreshSlack is by how much a peer must know an entry to live longer than
// our kernel does, to be worth telling the kernel.
const refreshSlack = 15 * time.Second

// A delivery is the room for peers' records that are being merged.
type delivery struct{ batch conntable.Batch }

// deliver merges a peer's records, and arranges for the kernel to be told.
// Those that need more than merging are dealt with one by one.
func (e *Engine) deliver(recs []conntable.Record) {
	served := e.owner.Shares(time.Now()) > 0
	n := 0
	for i := range recs {
		r := &recs[i]
		switch {
		case !e.wants(&r.Connection):
		case r.Template || r.Version.Node == e.self || served && e.servedHere(r):
			e.deliverOne(r)
		default:
			if n != i {
				recs[n] = *r
			}
			n++
		}
	}
	d := e.deliveries.Get().(*delivery)
	defer e.deliveries.Put(d)
	e.mergeAll(d, recs[:n])
}

func (e *Engine) mergeAll(d *delivery, recs []conntable.Record) {
	results := e.table.ApplyAll(&d.batch, recs, conntable.ToKernel)
	var outcomes [conntable.Outcomes]uint64
	for i := range results {
		r, res := &recs[i], &results[i]
		outcomes[res.Outcome]++
		if e.trace.on() {
			e.trace.merged(PathReceived, r, res)
		}
		e.noteMove(r, res)
		if e.nothingNew(r, res) {
			*res = conntable.Result{Outcome: conntable.Same}
		}
	}
	for o, n := range outcomes {
		if n > 0 {
			e.outcomes[o].Add(n)
		}
	}
	e.toKernel.offerAll(results, conntable.ToKernel)
}

// nothingNew reports whether the kernel need not be told of r, which was merged
// and is on its queue. Then it is on it no more.
func (e *Engine) nothingNew(r *conntable.Record, res *conntable.Result) bool {
	if res.Queued&conntable.ToKernel == 0 || res.Outcome != conntable.Updated || !e.kernelKnows(r, &res.Prev) {
		return false
	}
	var taken conntable.Record
	if e.table.Take(res.Ref, conntable.ToKernel, &taken) && taken.Version != r.Version {
		e.tellKernel(&taken.Key) // another had newer of it meanwhile
	}
	return true
}

// tellKernel puts the entry of k on the kernel's queue, and reports whether it
// was not there.
func (e *Engine) tellKernel(k *conntable.Key) bool {
	ref, queued := e.table.Queue(*k, conntable.ToKernel)
	if queued == 0 {
		return false
	}
	e.toKernel.push(ref)
	return true
}

// deliverOne is deliver for a record that may be about what is served here, or
// that has more to it.
func (e *Engine) deliverOne(r *conntable.Record) {
	if r.Version.Node == e.self && (!e.madeNow(r) && e.keepFound(r) || e.diedHere(r)) {
		return
	}
	var old conntable.Record
	if e.contested(r, &old) {
		e.insist(r, &old)
		return
	}
	was := r.Template && e.table.Lookup(r.Key, &old) && !old.Deleted
	res := e.table.Apply(r, conntable.ToKernel)
	e.outcomes[res.Outcome].Add(1)
	if e.trace.on() {
		e.trace.merged(PathReceived, r, &res)
	}
	if was && res.Outcome == conntable.Updated && !r.Deleted && old.Dest != r.Dest && !e.servedHere(r) {
		e.replaceTemplate(old.Connection)
	}
	e.noteMove(r, &res)
	if !e.nothingNew(r, &res) {
		e.toKernel.offer(&res, res.Queued&conntable.ToKernel != 0)
	}
}

// diedHere deals with what we told in this life and know no more: it was told as
// closing since, and died everywhere but at a peer that did not hear of that. It
// is told that now. If a full table gave it up, nobody knows.
func (e *Engine) diedHere(r *conntable.Record) bool {
	if r.Deleted || r.Remaining <= dying || !e.surelyOurs(r.Version) || e.table.Lookup(r.Key, new(conntable.Record)) || e.table.Shed() > 0 {
		return false
	}
	res := e.table.Apply(r, 0)
	e.outcomes[res.Outcome].Add(1)
	if res.Outcome == conntable.Added { // and neither kernel nor peers told anything meanwhile
		e.queued(e.table.DeleteIf(r, e.clock.Next(), e.newsFor()))
	}
	return true
}

// surelyOurs reports whether v was made by this life of ours, and neither by an
// earlier one, of which wall clocks that are wrong may say that it came later,
// nor by another director that bears our name.
func (e *Engine) surelyOurs(v conntable.Version) bool {
	since := e.sure.Load()
	return v.Node == e.self && since != 0 && v.Clock >= since && !e.session.Clashes()
}

// becomeSure notes from when on all versions of our name are of this life: what
// the earlier ones told is known, since our table was found to be the peers'.
func (e *Engine) becomeSure() {
	if e.sure.Load() == 0 && e.Synced() && e.session.Agrees() {
		e.sure.Store(e.clock.Now())
	}
}

// madeNow reports whether r, of which a peer says that we made it, is of this
// life. Where others' wall clocks are ahead of ours an earlier life followed
// them, and told versions that are higher than the time of our start: those that
// we do not know are its own, and so is all before them. When we are synced we
// follow the others, too.
func (e *Engine) madeNow(r *conntable.Record) bool {
	var have conntable.Record
	switch {
	case !e.isOurs(r.Version):
		return false
	case e.Synced() || e.table.Lookup(r.Key, &have) && have.Version.Compare(r.Version) >= 0:
		return true
	}
	for born := e.born.Load(); born <= r.Version.Clock && r.Version.Clock <= conntable.MaxClock; born = e.born.Load() {
		e.born.CompareAndSwap(born, r.Version.Clock+1)
	}
	return false
}

// keepFound deals with what an earlier life of ours told the peers, about an
// entry that was found in the kernel at start: the kernel went on meanwhile
// and knows it better, also if that is another connection of the same ports, but
// of what came from peers. It reports false if there is no such entry, as after
// a power cut.
func (e *Engine) keepFound(r *conntable.Record) bool {
	var found conntable.Record
	if !e.table.Lookup(r.Key, &found) || found.Version.Clock >= conntable.LiveClock || found.Version.Node != e.self {
		return false
	}
	other := found.Dest != r.Dest || r.Deleted
	if other && found.Flags&conntable.FlagSync != 0 {
		return false
	}
	if !other && found.State == r.State {
		e.outcomes[e.table.Apply(r, 0).Outcome].Add(1)
		return true
	}
	seen := found.Version
	found.Version = e.clock.Next()
	e.retell(seen, &found)
	return true
}

// kernelKnows reports whether r tells nothing new of an entry that was found
// in the kernel at start.
func (e *Engine) kernelKnows(r *conntable.Record, prev *conntable.Prev) bool {
	return prev.Version.Clock < conntable.LiveClock && prev.Version.Node == e.self && prev.SameTo && !r.Deleted &&
		prev.State == r.State && r.Remaining <= prev.Remaining+refreshSlack
}

// inject tells the kernel what the peers told us.
func (e *Engine) inject(ctx context.Context) error {
	var refs []conntable.Ref
	conns := make([]conntable.Connection, 0, injectChunk)
	look := time.NewTicker(lostEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			e.tellLost()
			e.tellRefused()
		case <-e.toKernel.full:
		}
		refs = e.toKernel.swap(refs)
		for rest := refs; len(rest) > 0 && ctx.Err() == nil; {
			n := min(len(rest), injectChunk)
			conns = e.injectSome(ctx, rest[:n], conns[:0])
			e.tellLost()
			e.toKernel.finish(n)
			rest = rest[n:]
		}
	}
}

func (e *Engine) injectSome(ctx context.Context, refs []conntable.Ref, conns []conntable.Connection) []conntable.Connection {
	e.taken = e.table.TakeAll(refs, conntable.ToKernel, e.taken[:0])
	for i := range e.taken {
		r := &e.taken[i]
		moved := e.moved.take(&r.Key)
		switch {
		case e.isOurs(r.Version):
			e.outrun.Add(1)
		case !e.takes(&r.Connection):
		case r.Version.Node == e.self && !e.finding.read.Load(): // the kernel may know it better
		case r.Deleted:
			e.traceInjected(r)
			e.lately.add(r.Key, false)
			if err := e.delete(r.Connection); err != nil {
				e.refused.Add(1)
				e.undeleted = append(e.undeleted, r.Key)
				e.log.Warn("delete from the kernel", "err", err)
			}
		case e.held(r):
			e.heldBack.Add(1)
			if moved {
				e.moved.note(r.Key) // until it is injected
			}
		case e.replacingTemplate(&r.Key): // injected when the old one is gone
		default:
			e.traceInjected(r)
			conns = appendForKernel(conns, r, moved)
		}
	}
	e.tell(ctx, conns)
	return conns
}

// tell gives conns to the kernel, again and again until it takes them: the
// queue behind them is bounded, and we are not synced without them.
func (e *Engine) tell(ctx context.Context, conns []conntable.Connection) {
	for k, moved := range toldOf(conns) {
		e.lately.add(k, moved) // before the kernel can lose it
	}
	for len(conns) > 0 {
		err := e.kernel.Inject(conns)
		if err == nil {
			e.injected.Add(uint64(len(conns)))
			return
		}
		e.refused.Add(uint64(len(conns)))
		e.log.Warn("inject", "records", len(conns), "err", err)
		if !task.Pause(ctx, injectAgain) {
			return
		}
		conns = e.renew(conns)
	}
}

// inKernel waits until all that waits for the kernel now is in its table, as
// far as it takes it, and is told it again if it loses it.
func (e *Engine) inKernel(ctx context.Context) error {
	for {
		mended := e.lately.mended()
		if err := e.toKernel.flushed(ctx); err != nil {
			return err
		}
		err := e.kernel.Settle(ctx)
		e.tellLost()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && e.lately.mended() == mended:
			return nil
		case err == nil:
			continue // it is told again
		}
		e.log.Warn("wait for the kernel to take what it was told", "err", err)
		if !task.Pause(ctx, injectAgain) {
			return err
		}
	}
}

// renew brings conns up to date, without those that are ours or gone by now.
func (e *Engine) renew(conns []conntable.Connection) []conntable.Connection {
	keep := conns[:0]
	var r conntable.Record
	for k, moved := range toldOf(conns) {
		if e.table.Lookup(k, &r) && !e.isOurs(r.Version) && !r.Deleted {
			keep = appendForKernel(keep, &r, moved)
		}
	}
	return keep
}

// isOurs reports whether v was made here since we started, from what the
// kernel told.
func (e *Engine) isOurs(v conntable.Version) bool {
	return v.Node == e.self && v.Clock >= e.born.Load()
}

// forKernel returns r as the kernel is told it. A TCP or UDP entry gets what
// remains of its life, and the kernel puts the whole timeout in its place at
// the next packet; a template keeps for ever what it is told, so it is told
// the whole.
func forKernel(r *conntable.Record) conntable.Connection {
	c := r.Connection
	c.Client = clientOf(&c.Key)
	c.Flags &= conntable.FlagBackupMask
	if !c.Template {
		// Up to whole seconds: 0 would stand for the kernel's own choice.
		c.Timeout = min(r.Remaining+time.Second-1, max(c.Timeout, time.Second)).Truncate(time.Second)
	}
	return c
}

// watchServices tells the kernel again of connections whose real server
// appeared: an entry that it could not bind stays unbound until it is told
// again (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn).
func (e *Engine) watchServices() {
	now, err := e.kernel.Services()
	if err != nil {
		e.log.Debug("list services", "err", err)
		return
	}
	all := serversOf(now.Targets)
	e.servers.Store(&all)
	e.tellServices(&now)
	if e.deferral != nil {
		if err := e.deferral.setTargets(&now); err != nil {
			e.log.Warn("choose the first packets to hold back", "err", err)
		}
	}
	before := e.services.Swap(&now)
	if before == nil {
		before = &Services{}
	}
	appeared := map[Target]struct{}{}
	for t := range now.Targets {
		if _, ok := before.Targets[t]; !ok {
			appeared[t] = struct{}{}
		}
	}
	if len(appeared) > 0 {
		e.reinject(serversOf(appeared))
	}
}

func (e *Engine) reinject(to servers) {
	n := uint64(0)
	e.table.Each(func(r *conntable.Record) bool {
		found := r.Version.Node == e.self && r.Version.Clock < conntable.LiveClock
		if r.Deleted || e.isOurs(r.Version) || found || !to.has(r) {
			return true
		}
		if e.tellKernel(&r.Key) {
			n++
		}
		return true
	})
	if n > 0 {
		e.reinjected.Add(n)
		e.log.Info("real servers appeared, telling the kernel again", "real_servers", len(to), "connections", n)
	}
}
