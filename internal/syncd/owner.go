package syncd

import (
	"context"
	"errors"
	"time"

	"saru/conntable"
	"saru/internal/control"
	"saru/internal/ownership"
	"saru/internal/task"
)

// ownerEvery is how often saru is asked what it serves.
const ownerEvery = 250 * time.Millisecond

// activeHere reports whether the packets of r's connection come to this
// director, so that the own kernel knows it best. Where saru tells, that is
// known; else it is guessed by who told of the connection last. known is false
// when nobody can say: saru tells that the connection is another's, which has
// not told of it yet.
func (e *Engine) activeHere(r *conntable.Record) (here, known bool) {
	own := r.Version.Node == e.self
	switch whose, _ := e.owner.Of(time.Now(), &r.Key); whose {
	case ownership.Here:
		return true, true
	case ownership.Elsewhere:
		return false, !own
	}
	return own, true
}

// servedHere reports whether saru tells that the packets of r's connection come
// to this director.
func (e *Engine) servedHere(r *conntable.Record) bool {
	whose, _ := e.owner.Of(time.Now(), &r.Key)
	return whose == ownership.Here
}

// contested reports whether r, a peer's, is of a time when its connection was
// served here, and deletes it or says otherwise than we do: then r is wrong,
// whatever its version, and old holds.
func (e *Engine) contested(r, old *conntable.Record) bool {
	whose, since := e.owner.Of(time.Now(), &r.Key)
	if whose != ownership.Here || !e.table.Lookup(r.Key, old) || old.Deleted || r.Version.Compare(old.Version) <= 0 {
		return false
	}
	if !e.isOurs(old.Version) && !r.Deleted {
		return false
	}
	// While the bucket moved here, both directors' words counted.
	alone := time.Since(since) - ownership.Settle
	return e.clock.Now()-min(r.Version.Clock, e.clock.Now()) < uint64(alone/time.Microsecond)
}

// insist tells old, which r contests, anew.
func (e *Engine) insist(r, old *conntable.Record) {
	e.contests.Add(1)
	e.clock.Observe(r.Version.Clock)
	seen := old.Version
	old.Version = e.clock.Next()
	if !e.retell(seen, old) {
		e.deliverOne(r) // more has come of it meanwhile
	}
}

// followOwner asks saru again and again what this director serves, until ctx
// ends. Without an answer nothing is known, and versions decide.
func (e *Engine) followOwner(ctx context.Context) error {
	client := control.NewClient(e.saru)
	var last error
	for {
		var told ownership.Told
		limited, cancel := context.WithTimeout(ctx, ownership.Stale/2)
		err := client.Get(limited, "/ownership", &told)
		cancel()
		if err == nil {
			err = e.owner.Update(time.Now(), &told)
		}
		if (err == nil) != (last == nil) && !errors.Is(err, control.ErrNotRunning) {
			e.log.Debug("what saru serves", "known", err == nil, "err", err)
		}
		last = err
		if !task.Pause(ctx, ownerEvery) {
			return nil
		}
	}
}
