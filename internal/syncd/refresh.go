package syncd

import (
	"context"
	"time"

	"saru/conntable"
	"saru/internal/task"
)

// A connection that talks starts its timeout again with every packet, and the
// kernel tells of it up to six times a minute. Told on as it is, a million of
// them would cost the cluster a hundred thousand records a second to say that
// all is as before. So:
//
//   - A refresh, a record that differs from what the peers know in nothing but
//     when the entry dies, is told to them only if what they were told last
//     falls below half of the timeout. Else only the mirror lives longer
//     (conntable.Table.Hear).
//   - What the mirror knows to live longer than the peers were told is told
//     when that falls below half, though no packet comes any more.
//
// So on the peers an entry that talks dies up to half its timeout early, if
// its director is gone at that moment, and one that was silent for half its
// timeout, when the owner has it die, to within exact.
//
// When the peers were told that an entry dies is not kept. It is version plus
// timeout: whoever tells a shorter life tells it as the timeout.

const (
	// refreshRound is how long it takes to look for what the peers must be
	// told; or longer, at refreshRate entries a second.
	refreshRound = 15 * time.Second
	refreshRate  = 100_000
	refreshStep  = 100 * time.Millisecond
	// refreshLeast is the timeout from which on refreshes may be held back.
	refreshLeast = 4 * refreshRound
)

// roundTime is how long a round takes in a mirror of so many entries,
// tombstones included.
func roundTime(entries int) time.Duration {
	return max(refreshRound, time.Duration(entries)*time.Second/refreshRate)
}

// heldFrom is the timeout from which on refreshes are held back in a mirror of
// so many entries: half of it must leave time for a round.
func heldFrom(entries int) time.Duration { return max(refreshLeast, 2*roundTime(entries)) }

// entries is how many the mirror has, tombstones included.
func (e *Engine) entries() int { return e.table.Len() + e.table.Tombstones() }

// vouched reports whether r is of a version that the peers were told by us.
func (e *Engine) vouched(r *conntable.Record) bool {
	return r.Version.Node == e.self && r.Version.Clock >= conntable.LiveClock
}

// told returns for how long the peers were told that an entry of ours lives.
func (e *Engine) told(r *conntable.Record) time.Duration {
	age := int64(e.clock.Now() - r.Version.Clock)
	return r.Timeout - time.Duration(age)*time.Microsecond
}

// tellInTime walks the mirror, round after round, and tells the peers what
// they must hear of lest an entry dies there before it does here.
func (e *Engine) tellInTime(ctx context.Context) error {
	recs := make([]conntable.Record, 512)
	var c conntable.Cursor
	for task.Pause(ctx, refreshStep) {
		for left := e.refreshShare(); left > 0; {
			n := e.table.Walk(&c, nil, recs[:min(left, len(recs))])
			if n == 0 {
				c = conntable.Cursor{}
				break
			}
			left -= n
			for i := range n {
				e.tellOnce(&recs[i])
			}
		}
	}
	return nil
}

// refreshShare is how many entries to look at in a step.
func (e *Engine) refreshShare() int {
	const perSecond = int(time.Second / refreshStep)
	return min(e.entries()/int(refreshRound/refreshStep)+1, refreshRate/perSecond)
}

// tellOnce tells of r if it is time. A template keeps its timeout, which is
// what the peers' kernels go on with; then what remains is told the shorter
// of the two by no more than a round.
func (e *Engine) tellOnce(r *conntable.Record) {
	if r.Deleted || !e.vouched(r) || r.Timeout < refreshLeast {
		return
	}
	told := e.told(r)
	if told >= r.Timeout/2 || r.Remaining <= max(told, 0)+exact || r.Template && r.Remaining <= told+2*refreshRound {
		return
	}
	if !r.Template {
		r.Timeout = (r.Remaining + time.Second - 1).Truncate(time.Second)
	}
	seen := r.Version
	r.Version = e.clock.Next()
	if e.retell(seen, r) {
		e.retold.Add(1)
	}
}
