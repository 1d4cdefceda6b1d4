package syncd

import (
	"context"
	"slices"
	"sync"
	"time"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

// silentTimeout is for entries whose timeout the kernel did not tell (sync
// version 0).
const silentTimeout = time.Minute

// captureChunk is how many captured records are merged at once: as many as a
// datagram of the kernel's holds.
const captureChunk = kernelsync.MaxRecords

// A capture is the room for captured records that are being merged.
type capture struct {
	mu    sync.Mutex
	recs  []conntable.Record
	batch conntable.Batch
}

// Captured takes a connection that the kernel told of; nothing of c is kept.
func (e *Engine) Captured(c *conntable.Connection) {
	one := [1]conntable.Connection{*c}
	e.CapturedAll(one[:])
}

// CapturedAll takes connections that the kernel told of, those of a datagram
// for instance; nothing of conns is kept.
//
// The kernel tells of a connection when a client's packet passed through it
// here, and never because of what was injected. So all that it tells is ours,
// also with the flag that says that the entry once came by sync: then this
// director took the connection over.
func (e *Engine) CapturedAll(conns []conntable.Connection) {
	e.captured.Add(uint64(len(conns)))
	c := &e.capture
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(conns) > 0 {
		n := min(len(conns), captureChunk)
		c.recs = slices.Grow(c.recs[:0], n)
		v := e.clock.Shared()
		for i := range conns[:n] {
			if e.wants(&conns[i]) {
				c.recs = c.recs[:len(c.recs)+1]
				recordOf(&conns[i], v, &c.recs[len(c.recs)-1])
			}
		}
		e.hearAll(c)
		conns = conns[n:]
	}
}

// recordOf makes r what the kernel told by c.
func recordOf(c *conntable.Connection, v conntable.Version, r *conntable.Record) {
	r.Connection, r.Version, r.Remaining, r.Deleted = *c, v, c.Timeout, false
	r.Flags &= conntable.FlagBackupMask
	if r.Seq != nil {
		r.Seq = &conntable.SeqPair{In: c.Seq.In, Out: c.Seq.Out}
	}
	r.PEData = slices.Clone(c.PEData)
	keyCall(&r.Connection)
	if r.Timeout <= 0 {
		r.Timeout, r.Remaining = silentTimeout, silentTimeout
	}
}

// hearAll merges c's records as news of ours.
func (e *Engine) hearAll(c *capture) {
	results := e.table.HearAll(&c.batch, c.recs, e.newsFor(), heldFrom(e.entries()))
	for i := range results {
		switch res := &results[i]; res.Outcome {
		case conntable.Same, conntable.Stale:
			e.news(&c.recs[i])
			continue
		case conntable.Full:
			e.shed.Add(1)
		}
		e.merged(&c.recs[i], &results[i])
	}
	e.toPeers.offerAll(results, conntable.ToPeers)
	if e.toLegacy != nil {
		e.toLegacy.pushAll(results, conntable.ToLegacy)
	}
}

// merged counts and shows what became of r, news of ours.
func (e *Engine) merged(r *conntable.Record, res *conntable.Result) {
	if res.Outcome == conntable.Extended {
		e.suppressed.Add(1)
	}
	if e.trace.on() {
		seen, what := *r, *res // so that r stays off the heap
		e.trace.merged(PathCaptured, &seen, &what)
	}
}

// retell tells anew what an entry held that was looked at, unless there has been
// news of it since: then it reports false.
func (e *Engine) retell(seen conntable.Version, r *conntable.Record) bool {
	res := e.table.Retell(seen, r, e.newsFor())
	if res.Outcome == conntable.Stale {
		return false
	}
	e.merged(r, &res)
	e.queued(res)
	return true
}

// news merges a record of ours and queues it for the peers.
func (e *Engine) news(r *conntable.Record) {
	res := e.table.Apply(r, e.newsFor())
	if res.Outcome == conntable.Same || res.Outcome == conntable.Stale {
		// The version that it shares with other news is older than what the
		// connection has.
		r.Version = e.clock.Next()
		res = e.table.Apply(r, e.newsFor())
	}
	e.merged(r, &res)
	e.queued(res)
}

// newsFor returns who is told what happens here.
func (e *Engine) newsFor() conntable.Queue {
	if e.toLegacy != nil {
		return conntable.ToPeers | conntable.ToLegacy
	}
	return conntable.ToPeers
}

// queued puts what the table took on the queues that it says.
func (e *Engine) queued(res conntable.Result) {
	if res.Outcome == conntable.Full {
		e.shed.Add(1)
	}
	e.toPeers.offer(&res, res.Queued&conntable.ToPeers != 0)
	if res.Queued&conntable.ToKernel != 0 {
		e.toKernel.push(res.Ref)
	}
	if res.Queued&conntable.ToLegacy != 0 {
		e.toLegacy.push(res.Ref)
	}
}

// fewRefreshes are sent with what goes before them: a datagram has room for as
// many.
const fewRefreshes = 128

// flush sends our news to the peers: at once after a pause, else gathered for
// flushWindow.
func (e *Engine) flush(ctx context.Context) error {
	var refs []conntable.Ref
	recs := make([]conntable.Record, 0, flushChunk)
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.toPeers.full:
		}
		if rest := flushWindow - time.Since(last); rest > 0 && e.toPeers.size() < flushChunk {
			timer.Reset(rest)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
		}
		refs = e.toPeers.swap(refs)
		e.clock.Turn()
		last = time.Now()
		// What cannot wait goes alone, unless the rest is too little to matter.
		n := e.toPeers.firsts()
		if len(refs)-n < fewRefreshes {
			n = len(refs)
		}
		recs = e.sendNews(refs[:n], recs)
		recs = e.sendNews(refs[n:], recs)
		e.toPeers.finish(len(refs))
	}
}

func (e *Engine) sendNews(refs []conntable.Ref, recs []conntable.Record) []conntable.Record {
	for len(refs) > 0 {
		n := min(len(refs), flushChunk)
		recs = e.ours(e.table.TakeAll(refs[:n], conntable.ToPeers, recs[:0]))
		refs = refs[n:]
		if len(recs) > 0 {
			e.tellAndAsk(recs)
		}
	}
	return recs
}

// ours leaves those of recs that are ours to tell: a peer's newer version is
// told by that peer.
func (e *Engine) ours(recs []conntable.Record) []conntable.Record {
	n := 0
	for i := range recs {
		r := &recs[i]
		if r.Version.Node != e.self && r.Version.Node != legacyNode {
			continue
		}
		if e.trace.on() {
			e.trace.told(PathSent, r)
		}
		if n != i {
			recs[n] = *r
		}
		n++
	}
	return recs[:n]
}

// recordOfEntry returns what k tells, without a version.
func recordOfEntry(k *Entry) conntable.Record {
	r := conntable.Record{Connection: k.Connection, Remaining: k.Remaining}
	r.Timeout = max(r.Timeout, k.Remaining)
	keyCall(&r.Connection)
	if k.Synced {
		r.Flags |= conntable.FlagSync
	}
	return r
}

// take takes in an entry of the kernel's table that the mirror does not know,
// with a version older than any news, and puts it on the queues q.
func (e *Engine) take(k *Entry, q conntable.Queue) {
	if !e.wants(&k.Connection) {
		return
	}
	r := recordOfEntry(k)
	r.Version = conntable.FoundVersion(e.self, k.Remaining)
	res := e.table.Apply(&r, q)
	if res.Outcome == conntable.Added {
		e.found.Add(1)
	}
	e.queued(res)
}
