package ipvs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"saru/conntable"
)

const (
	// silentAfter is how long no heartbeat may come back before the capture
	// counts as degraded.
	silentAfter = 3 * time.Second
	// ahead is how long before its ping an entry is injected.
	ahead = time.Second
	// idleCheck is how often a Tap without beats looks for the reason.
	idleCheck = time.Second
	// guardCheck is how often the guard is looked for.
	guardCheck = 5 * time.Second
)

// beats remembers when each heartbeat went out and the last came back.
type beats struct {
	entries []conntable.Connection
	ahead   int // entries

	mu    sync.Mutex
	sent  []time.Time
	at    time.Time
	delay time.Duration
}

func newBeats(rate int, refresh time.Duration) *beats {
	n := beatCount(rate, refresh)
	b := &beats{entries: make([]conntable.Connection, n), sent: make([]time.Time, n)}
	for i := range b.entries {
		b.entries[i] = beatEntry(i)
	}
	b.ahead = min(max(1, int(float64(rate)*ahead.Seconds())), n-1)
	return b
}

func (b *beats) out(i int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent[i] = now
}

func (b *beats) back(i int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = now
	if i < len(b.sent) && !b.sent[i].IsZero() {
		b.delay = now.Sub(b.sent[i])
	}
}

func (b *beats) last() (time.Time, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at, b.delay
}

// beat sends the heartbeat: at each tick it injects an entry and pings the one
// injected a second ago. Between, it finds out why none comes back.
func (t *Tap) beat(ctx context.Context) error {
	b := t.beats
	if _, _, err := t.inj.inject(b.entries[:b.ahead]); err != nil {
		t.fail(err.Error())
	}
	tick := time.NewTicker(time.Second / time.Duration(t.cfg.BeatRate))
	defer tick.Stop()
	started := time.Now()
	checked, guarded := started, started
	for i := 0; ; i = (i + 1) % len(b.entries) {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
		}
		next := (i + b.ahead) % len(b.entries)
		if _, _, err := t.inj.inject(b.entries[next : next+1]); err != nil {
			t.fail(err.Error())
		}
		b.out(i, time.Now())
		if err := t.pinger.ping(&b.entries[i]); err != nil {
			t.fail(err.Error())
		}
		if now.Sub(checked) >= idleCheck {
			checked = now
			t.judge(now, started)
		}
		if now.Sub(guarded) >= guardCheck {
			guarded = now
			t.keepGuard()
		}
	}
}

// judge decides whether the capture works, and mends what it can.
func (t *Tap) judge(now, started time.Time) {
	last := t.LastBeat()
	if last.IsZero() {
		last = started
	}
	if now.Sub(last) < silentAfter {
		if !t.LastBeat().IsZero() {
			t.healthy()
		}
		return
	}
	defer t.ready()
	if reason := t.diagnose(); reason != "" {
		t.fail(reason)
		return
	}
	t.healthy()
}

// diagnose says why no heartbeat comes back, or nothing if none is due. It
// starts sync threads that somebody stopped.
func (t *Tap) diagnose() string {
	if services, err := t.client.Services(); err == nil && len(services) == 0 {
		return "" // IPVS sees no packets
	}
	daemons, err := t.client.Daemons()
	if err != nil {
		return err.Error()
	}
	for _, want := range t.cfg.daemons() {
		running := false
		for _, d := range daemons {
			if d.Role != want.Role {
				continue
			}
			if !t.cfg.ours(d) {
				return fmt.Sprintf("somebody else took the %s sync thread, for interface %q and sync ID %d; stop it with \"ipvsadm --stop-daemon %s\"",
					d.Role, d.Interface, d.SyncID, d.Role)
			}
			running = true
		}
		if running {
			continue
		}
		if err := t.client.StartDaemon(want); err != nil {
			return err.Error()
		}
		t.log.Warn("somebody stopped a sync thread; started again", "thread", want.Role.String())
	}
	return fmt.Sprintf("heartbeats sent from %v to %v do not come back; does a firewall drop them on lo, or is %s down?", beatNet, beatAddr, t.cfg.Interface)
}

func (t *Tap) fail(reason string) {
	if old := t.problem.Swap(&reason); old == nil || *old != reason {
		t.log.Warn("capture degraded", "reason", reason)
	}
}

func (t *Tap) healthy() {
	if old := t.problem.Swap(nil); old != nil {
		t.log.Info("capture works again", "was", *old)
	}
}

// keepGuard puts the guard back if somebody flushed the ruleset.
func (t *Tap) keepGuard() {
	if !t.guarded.Load() {
		return
	}
	if ok, err := t.guard.present(); err != nil || ok {
		return
	}
	t.log.Warn("somebody removed our nftables table; putting it back", "table", t.cfg.Interface)
	t.installGuard()
}

// forgetBeats deletes the heartbeat's entries from the kernel's table.
func (t *Tap) forgetBeats() {
	gone := make([]conntable.Connection, len(t.beats.entries))
	for i := range gone {
		gone[i] = deletion(&t.beats.entries[i])
	}
	_, _, err := t.inj.inject(gone)
	if err == nil {
		err = t.inj.drain(0)
	}
	if err != nil {
		t.log.Debug("heartbeat entries are left to expire", "err", err)
	}
}
