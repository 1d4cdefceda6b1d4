package syncd

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// expiringAnyway is what may remain of a connection whose expiry is not worth
// telling: the peers' entries end as soon by themselves.
const expiringAnyway = 2 * time.Second

// A monotonic is CLOCK_MONOTONIC, which the module stamps with.
type monotonic struct {
	at time.Time
	ns uint64
}

func newMonotonic() monotonic {
	var ts unix.Timespec
	// It cannot fail with this clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return monotonic{time.Now(), uint64(ts.Nano())}
}

// now returns the clock's reading.
func (m *monotonic) now() uint64 { return m.ns + uint64(time.Since(m.at)) }

// versionAt returns the version of what the module stamped: what the cluster's
// clock was then. So it does not matter in which order two CPUs' tellings come,
// and what was held up here for seconds is not taken for newer than what a
// peer told meanwhile.
func (e *Engine) versionAt(stamp uint64) conntable.Version {
	now := e.clock.Now()
	age := uint64(0)
	if mono := e.mono.now(); mono > stamp {
		age = (mono - stamp) / uint64(time.Microsecond)
	}
	return conntable.Version{Clock: max(e.born.Load(), now-min(age, now)), Node: e.self}
}

// Heard takes what the module tells of an entry; nothing of k is kept. The
// module tells of packets that passed here and of expiries, never of what was
// injected, so like what is Captured it is ours.
func (e *Engine) Heard(k *usersync.Record) {
	if ipvs.IsBeat(&k.Connection) {
		return // of a tap that is being closed
	}
	e.captured.Add(1)
	keyCall(&k.Connection)
	switch {
	case !e.wants(&k.Connection):
	case k.Kind == usersync.KindExpired:
		e.gone(k)
	default:
		e.heardAt(k, e.versionAt(k.Stamp))
	}
}

// heardAt merges the state that k tells as news of version v.
func (e *Engine) heardAt(k *usersync.Record, v conntable.Version) {
	r := conntable.Record{Connection: k.Connection, Version: v, Remaining: k.Remaining}
	r.Flags &= conntable.FlagBackupMask
	if k.Seq != nil {
		r.Seq = &conntable.SeqPair{In: k.Seq.In, Out: k.Seq.Out}
	}
	r.PEData = slices.Clone(k.PEData)
	least := time.Duration(0)
	if k.Kind == usersync.KindUpdate {
		least = heldFrom(e.entries())
	}
	// Two tellings within a microsecond: the one that came last counts.
	for range 4 {
		res := e.table.Hear(&r, e.newsFor(), least)
		e.merged(&r, &res)
		e.queued(res)
		if res.Outcome != conntable.Same {
			return
		}
		r.Version.Clock++
	}
}

// gone tells the peers of an entry that left the kernel's table before its
// time, if it was ours to tell of: a peer may have it by now, and the mirror
// another real server under its key.
func (e *Engine) gone(k *usersync.Record) {
	var r conntable.Record
	if !e.table.Lookup(k.Key, &r) || r.Deleted || r.Version.Node != e.self || r.Dest != k.Dest || r.Remaining <= expiringAnyway {
		return
	}
	e.queued(e.table.Delete(k.Key, e.versionAt(k.Stamp), e.newsFor()))
}

// activeSince is when the last packet came to an entry that packets have
// touched: it started the timer anew.
func activeSince(k *usersync.Record) uint64 {
	return k.Stamp - min(k.Stamp, uint64(max(0, k.Timeout-k.Remaining)))
}

// tick is how coarse the kernel's timers are (HZ = 100 at the least).
const tick = 10 * time.Millisecond

// yields reports whether the kernel's entry k, which packets have touched, is
// to give way to what the mirror has: a peer told of the connection after the
// last packet here. If it does not, what k tells is news.
func (e *Engine) yields(k *usersync.Record) bool {
	var r conntable.Record
	if !e.table.Lookup(k.Key, &r) || r.Version.Node == e.self {
		return false
	}
	active := e.versionAt(activeSince(k))
	if active.Clock <= r.Version.Clock+uint64(tick/time.Microsecond) {
		return true
	}
	e.heardAt(k, active)
	return false
}
