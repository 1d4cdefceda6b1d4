package syncd

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"
	"time"

	"saru/conntable"
)

// foundAtOnce is for how long everything else waits at start until the kernel's
// table is read.
const foundAtOnce = 2 * time.Second

// finding is the reading of what the kernel's table holds from before we
// started. A table of some ten thousand entries is read before the peers are
// heard. The time that /proc takes grows with the square of the table, to
// minutes for a million entries; of such a one the rest is read while we mirror
// already. We are not synced before its end.
//
// What the peers hold of an earlier life of ours the kernel may know better. So
// until all is read none of it is injected; then that which was not found.
type finding struct {
	entries atomic.Int64
	first   chan struct{} // closed after foundAtOnce, or at the end
	read    atomic.Bool   // to the end
	all     chan struct{} // closed when the kernel's queue has what was not found, too
	seed    maphash.Seed
	late    map[uint64]struct{} // hashes of the keys found, for if that takes longer
	passed  bool                // foundAtOnce
}

func newFinding() *finding {
	return &finding{first: make(chan struct{}), all: make(chan struct{}), seed: maphash.MakeSeed()}
}

// warnings says that the table is still being read.
func (f *finding) warnings() []string {
	if f.read.Load() {
		return nil
	}
	return []string{fmt.Sprintf("the kernel's table is still being read, as long as it is: %d entries so far; not synced before that is done", f.entries.Load())}
}

// await waits for ch, and reports whether ctx is still alive.
func await(ctx context.Context, ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}

// takeFound takes in what the kernel's table holds from before we started,
// with versions older than any news.
func (e *Engine) takeFound(ctx context.Context) error {
	f := e.finding
	start := time.Now()
	err := e.kernel.Entries(func() error {
		if !f.passed && time.Since(start) >= foundAtOnce {
			f.passed = true
			e.log.Info("the kernel's table is long: reading it goes on while its connections are mirrored", "entries", f.entries.Load())
			close(f.first)
		}
		return ctx.Err()
	}, e.foundOne)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the kernel's connections at start: %w", err)
	}
	f.read.Store(true)
	if f.passed {
		e.injectNotFound()
		e.log.Info("the kernel's table was read", "entries", f.entries.Load(), "after", time.Since(start).Round(time.Millisecond))
	} else {
		close(f.first)
	}
	f.late = nil
	close(f.all)
	return nil
}

// foundOne takes in an entry of the kernel's.
func (e *Engine) foundOne(k *Entry) {
	f := e.finding
	f.entries.Add(1)
	keyCall(&k.Connection)
	if f.late == nil {
		f.late = map[uint64]struct{}{}
	}
	// Of two keys with one hash the second may be missed, once in 2^64.
	f.late[maphash.Comparable(f.seed, k.Key)] = struct{}{}
	var told conntable.Record
	if e.table.Lookup(k.Key, &told) && e.ofEarlierLife(&told) {
		other := told.Dest != k.Dest || told.Deleted
		switch {
		case !other:
			e.knowBetter(k, &told)
			return
		case !k.Synced:
			e.replaceEarlier(k)
			return
		}
	}
	q := conntable.Queue(0) // the peers fetch it when they join us
	if f.passed {
		q = e.newsFor() // they may have done so
	}
	e.take(k, q)
}

// knowBetter makes news of what the kernel did since an earlier life of ours
// told the peers of k, if it did anything: keepFound the other way round.
func (e *Engine) knowBetter(k *Entry, told *conntable.Record) {
	if told.State == k.State || !e.takes(&k.Connection) {
		return
	}
	told.Version, told.State, told.Remaining = e.clock.Next(), k.State, k.Remaining
	told.Timeout = max(k.Timeout, k.Remaining)
	e.news(told)
}

// replaceEarlier makes news of k, which the kernel made meanwhile in the place
// of what an earlier life of ours told the peers.
func (e *Engine) replaceEarlier(k *Entry) {
	if !e.wants(&k.Connection) {
		return
	}
	r := recordOfEntry(k)
	r.Version = e.clock.Next()
	e.news(&r)
}

// ofEarlierLife reports whether r was told by this node before it started, and
// came back from the peers.
func (e *Engine) ofEarlierLife(r *conntable.Record) bool {
	return r.Version.Node == e.self && r.Version.Clock >= conntable.LiveClock && !e.isOurs(r.Version)
}

// injectNotFound has the kernel told of what an earlier life of ours had told,
// and the kernel was not found to have.
func (e *Engine) injectNotFound() {
	e.table.Each(func(r *conntable.Record) bool {
		_, found := e.finding.late[maphash.Comparable(e.finding.seed, r.Key)]
		if found || r.Deleted || !e.ofEarlierLife(r) {
			return true
		}
		if ref, queued := e.table.Queue(r.Key, conntable.ToKernel); queued != 0 {
			e.toKernel.push(ref)
		}
		return true
	})
}
