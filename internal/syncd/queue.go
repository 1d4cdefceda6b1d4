package syncd

import (
	"context"
	"sync"

	"saru/conntable"
)

// A queue holds entries that wait for one reader. The table sees to it that
// none waits twice.
type queue struct {
	mu      sync.Mutex
	refs    []conntable.Ref
	pushed  uint64
	done    uint64
	waiters []waiter
	full    chan struct{} // has a token while there may be something to read
}

type waiter struct {
	mark uint64
	done chan struct{}
}

func newQueue() *queue { return &queue{full: make(chan struct{}, 1)} }

func (q *queue) push(ref conntable.Ref) {
	q.mu.Lock()
	q.refs = append(q.refs, ref)
	q.pushed++
	q.mu.Unlock()
	select {
	case q.full <- struct{}{}:
	default:
	}
}

// idle reports whether nothing waits or is being dealt with.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.done == q.pushed
}

// size is how many entries wait.
func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.refs)
}

// swap takes all that waits, in order, and leaves buf to be filled.
func (q *queue) swap(buf []conntable.Ref) []conntable.Ref {
	q.mu.Lock()
	defer q.mu.Unlock()
	refs := q.refs
	q.refs = buf[:0]
	return refs
}

// finish says that n of those taken are dealt with.
func (q *queue) finish(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done += uint64(n)
	keep := q.waiters[:0]
	for _, w := range q.waiters {
		if w.mark <= q.done {
			close(w.done)
		} else {
			keep = append(keep, w)
		}
	}
	q.waiters = keep
}

// flushed waits until all that was pushed before is dealt with.
func (q *queue) flushed(ctx context.Context) error {
	q.mu.Lock()
	if q.done == q.pushed {
		q.mu.Unlock()
		return nil
	}
	w := waiter{q.pushed, make(chan struct{})}
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
	return int(q.pushed - q.done), q.done
}
