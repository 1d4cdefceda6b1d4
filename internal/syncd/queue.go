package syncd

import (
	"context"
	"sync"

	"saru/conntable"
)

// laterChunk is how much of what can wait is taken at once, so that what
// cannot does not wait behind it.
const laterChunk = flushChunk

// manyWait is how many may wait before a queue looks whether they still do.
const manyWait = 1 << 20

// A queue holds entries that wait for one reader. The table sees to it that
// none waits twice. But one that dies meanwhile leaves its place here, and if the
// reader stands still, so do all that follow it. Where many wait, those are
// dropped whenever there are twice as many as the last time: so there are never
// more than manyWait, or twice what the table holds.
//
// It has two lanes. What is new and what closes goes first; refreshes, which
// only say that a connection lives on, wait as long as there is anything else.
// An entry in the second lane that changes is put into the first, too; the
// reader finds it done when its other turn comes.
type queue struct {
	table *conntable.Table
	kind  conntable.Queue

	mu        sync.Mutex
	many      int // that wait, before it is looked whether they do
	first     lane
	later     lane
	overtaken int // of those that wait in later; never more
	waiters   []waiter
	full      chan struct{} // has a token while there may be something to read
}

// A lane is first in, first out.
type lane struct {
	refs   []conntable.Ref
	pushed uint64
	taken  uint64
	done   uint64
}

type waiter struct {
	first, later uint64
	done         chan struct{}
}

func newQueue(table *conntable.Table, kind conntable.Queue) *queue {
	return &queue{table: table, kind: kind, many: manyWait, full: make(chan struct{}, 1)}
}

func (l *lane) push(ref conntable.Ref) {
	l.refs = append(l.refs, ref)
	l.pushed++
}

// take appends up to n of those that wait to buf.
func (l *lane) take(buf []conntable.Ref, n int) []conntable.Ref {
	n = min(n, len(l.refs))
	buf = append(buf, l.refs[:n]...)
	l.taken += uint64(n)
	// What remains moves to the front, where its room is used again.
	l.refs = l.refs[:copy(l.refs, l.refs[n:])]
	return buf
}

// finish marks up to n of those taken as done, and returns how many.
func (l *lane) finish(n uint64) uint64 {
	n = min(n, l.taken-l.done)
	l.done += n
	return n
}

func (q *queue) push(ref conntable.Ref) {
	q.mu.Lock()
	q.first.push(ref)
	q.prune()
	q.mu.Unlock()
	q.signal()
}

// pushLater pushes what can wait.
func (q *queue) pushLater(ref conntable.Ref) {
	q.mu.Lock()
	q.later.push(ref)
	q.prune()
	q.mu.Unlock()
	q.signal()
}

// overtake puts an entry that waits, and may wait as one that can, before
// those.
func (q *queue) overtake(ref conntable.Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.overtakeLocked(ref)
}

func (q *queue) overtakeLocked(ref conntable.Ref) {
	if q.overtaken < len(q.later.refs) {
		q.overtaken++
		q.first.push(ref)
	}
}

func (q *queue) signal() {
	select {
	case q.full <- struct{}{}:
	default:
	}
}

// idle reports whether nothing waits or is being dealt with.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.idleLocked()
}

func (q *queue) idleLocked() bool {
	return q.first.done == q.first.pushed && q.later.done == q.later.pushed
}

// size is how many entries wait.
func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.first.refs) + len(q.later.refs)
}

// swap takes all that cannot wait, in order, then some of the rest, into the
// room of buf. The next swap may come when all of it is finished.
func (q *queue) swap(buf []conntable.Ref) []conntable.Ref {
	q.mu.Lock()
	defer q.mu.Unlock()
	refs := q.first.refs
	q.first.taken += uint64(len(refs))
	q.first.refs = buf[:0]
	refs = q.later.take(refs, laterChunk)
	q.overtaken = min(q.overtaken, len(q.later.refs))
	if len(q.later.refs) > 0 {
		q.signal()
	}
	return refs
}

// firsts is how many of those taken and not finished could not wait. They are
// the first of them.
func (q *queue) firsts() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int(q.first.taken - q.first.done)
}

// finish says that the next n of those taken are dealt with.
func (q *queue) finish(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later.finish(uint64(n) - q.first.finish(uint64(n)))
	q.wake()
}

// wake lets those go on that wait for nothing any more. q.mu is held, here and
// for prune.
func (q *queue) wake() {
	keep := q.waiters[:0]
	for _, w := range q.waiters {
		if w.first <= q.first.done && w.later <= q.later.done {
			close(w.done)
		} else {
			keep = append(keep, w)
		}
	}
	q.waiters = keep
}

// prune drops those that wait for nothing, if many wait.
func (q *queue) prune() {
	if len(q.first.refs)+len(q.later.refs) <= q.many {
		return
	}
	first, later := make([]*uint64, len(q.waiters)), make([]*uint64, len(q.waiters))
	for i := range q.waiters {
		first[i], later[i] = &q.waiters[i].first, &q.waiters[i].later
	}
	waits := func(ref conntable.Ref) bool { return q.table.Mark(ref, q.kind) }
	q.first.prune(waits, first)
	q.later.prune(waits, later)
	for _, l := range []*lane{&q.first, &q.later} {
		for _, ref := range l.refs {
			q.table.Unmark(ref, q.kind)
		}
	}
	q.overtaken = 0 // those were dropped from later
	q.many = max(manyWait, 2*(len(q.first.refs)+len(q.later.refs)))
	q.wake()
}

// prune keeps those that wait. The numbers in upTo, in order, say what was
// pushed before something, and go on to.
func (l *lane) prune(waits func(conntable.Ref) bool, upTo []*uint64) {
	refs := l.refs
	l.refs = refs[:0]
	for i, ref := range refs {
		for len(upTo) > 0 && *upTo[0] <= l.taken+uint64(i) {
			*upTo[0] = min(*upTo[0], l.taken+uint64(len(l.refs)))
			upTo = upTo[1:]
		}
		if waits(ref) {
			l.refs = append(l.refs, ref)
		}
	}
	l.pushed = l.taken + uint64(len(l.refs))
	for _, p := range upTo {
		*p = min(*p, l.pushed)
	}
}

// flushed waits until all that was pushed before is dealt with.
func (q *queue) flushed(ctx context.Context) error {
	q.mu.Lock()
	if q.idleLocked() {
		q.mu.Unlock()
		return nil
	}
	w := waiter{q.first.pushed, q.later.pushed, make(chan struct{})}
	q.waiters = append(q.waiters, w)
	q.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.done:
		return nil
	}
}

// progress returns how many entries wait, and how many were dealt with.
func (q *queue) progress() (waiting int, done uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	done = q.first.done + q.later.done
	return int(q.first.pushed + q.later.pushed - done), done
}

// offer puts an entry on q as res says: it was put on it now (queued), or may
// stand on it already.
func (q *queue) offer(res *conntable.Result, queued bool) {
	switch {
	case queued && res.Refresh:
		q.pushLater(res.Ref)
	case queued:
		q.push(res.Ref)
	case !res.Refresh && res.Outcome == conntable.Updated:
		q.overtake(res.Ref)
	}
}

// offerAll offers many: those that were put on queue now, or may stand on it
// already.
func (q *queue) offerAll(results []conntable.Result, queue conntable.Queue) {
	q.mu.Lock()
	before := len(q.first.refs) + len(q.later.refs)
	for i := range results {
		switch res := &results[i]; {
		case res.Queued&queue != 0 && res.Refresh:
			q.later.push(res.Ref)
		case res.Queued&queue != 0:
			q.first.push(res.Ref)
		case !res.Refresh && res.Outcome == conntable.Updated:
			q.overtakeLocked(res.Ref)
		}
	}
	more := len(q.first.refs)+len(q.later.refs) > before
	q.prune()
	q.mu.Unlock()
	if more {
		q.signal()
	}
}

// pushAll pushes those of results that were put on queue now.
func (q *queue) pushAll(results []conntable.Result, queue conntable.Queue) {
	for i := range results {
		if results[i].Queued&queue != 0 {
			q.push(results[i].Ref)
		}
	}
}
