package syncd

import (
	"hash/maphash"

	"saru/conntable"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// A dumper reads the kernel's table (usersync.Client).
type dumper interface {
	Dump(filter usersync.Filter, fn func(*usersync.Record) error) error
	Get(key conntable.Key) (usersync.Record, bool, error)
}

// Reconciled says what Reconcile found.
type Reconciled struct {
	Entries int // in the kernel
	News    int // missed: told to the peers now
	Gone    int // missed expiries
	Told    int // peers' connections that the kernel is told again
}

// reconcile makes mirror and kernel right after events may have been missed.
// The module's listener must be hearing events already, so that what happens
// meanwhile is not missed either.
//
// What packets touched is told if it is newer than the mirror's; what was only
// injected gives way to it. With mark all peers' connections are injected
// again, for entries that the kernel's sync threads made do not tell of their
// first packet here.
func (e *Engine) reconcile(k dumper, mark bool) (Reconciled, error) {
	var out Reconciled
	before := e.versionAt(e.mono.now())
	seed := maphash.MakeSeed()
	// Of two keys with one hash the second may be missed, once in 2^64.
	seen := map[uint64]struct{}{}
	err := k.Dump(usersync.Filter{}, func(r *usersync.Record) error {
		if ipvs.IsBeat(&r.Connection) || !e.takes(&r.Connection) {
			return nil
		}
		keyCall(&r.Connection)
		seen[maphash.Comparable(seed, r.Key)] = struct{}{}
		out.Entries++
		e.compare(r, mark, &out)
		return nil
	})
	if err != nil {
		return out, err
	}
	var missing []conntable.Key
	e.table.Each(func(r *conntable.Record) bool {
		_, there := seen[maphash.Comparable(seed, r.Key)]
		if !there && !r.Deleted && e.takes(&r.Connection) && r.Version.Node == e.self && r.Version.Compare(before) < 0 && !e.neverHere(r) {
			missing = append(missing, r.Key)
		}
		return true
	})
	return out, e.bury(k, missing, &out)
}

// bury tells that connections of ours are gone, if they are.
func (e *Engine) bury(k dumper, missing []conntable.Key, out *Reconciled) error {
	for _, key := range missing {
		// From before it is looked at: what comes later is newer.
		v := e.versionAt(e.mono.now())
		r, there, err := k.Get(key)
		switch {
		case err != nil:
			return err
		case there:
			e.compare(&r, false, out)
			continue
		}
		out.Gone++
		e.queued(e.table.Delete(key, v, e.newsFor()))
	}
	return nil
}

// compare looks at one entry of the kernel's.
func (e *Engine) compare(k *usersync.Record, mark bool, out *Reconciled) {
	var m conntable.Record
	known := e.table.Lookup(k.Key, &m)
	touched := k.Packets > 0
	switch {
	case !known && (touched || k.Flags&conntable.FlagSync == 0), known && m.Version.Node == e.self && missed(k, &m):
		out.News++
		e.heardAt(k, e.versionAt(k.Stamp))
	case !known || m.Version.Node == e.self:
	case touched && !e.yields(k):
		out.News++
	case mark && !touched || m.Deleted || m.State != k.State || m.Dest != k.Dest:
		out.Told++
		if ref, queued := e.table.Queue(k.Key, conntable.ToKernel); queued != 0 {
			e.toKernel.push(ref)
		}
	}
}

// missed reports whether our mirror does not know what k tells.
func missed(k *usersync.Record, m *conntable.Record) bool {
	return m.Deleted || m.State != k.State || m.Dest != k.Dest || k.Remaining > m.Remaining+refreshSlack
}
