package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"saru/conntable"
)

const (
	// silentAfter is how long no heartbeat may come back before the capture
	// counts as degraded.
	silentAfter = 3 * time.Second
	// ahead is how long before its ping an entry is injected.
	ahead = time.Second
	// judgeEvery is how often the tap judges its health.
	judgeEvery = time.Second
	// guardEvery is how often the guard is looked for.
	guardEvery = 5 * time.Second
)

// beats remembers when each heartbeat went out and the last came back.
type beats struct {
	entries []conntable.Connection
	ahead   int // entries

	mu    sync.Mutex
	sent  []time.Time
	at    time.Time
	delay time.Duration
	err   error // what failed first, since it was asked
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

// failed notes what failed, if anything did.
func (b *beats) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

// failure returns what failed first since it was last asked.
func (b *beats) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.err
	b.err = nil
	return err
}

func (b *beats) last() (time.Time, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at, b.delay
}

// beat sends the heartbeat: at each tick it pings the entry that was injected
// a second ago, deletes it, and injects another. The record is on its way when
// the ping returns, since the kernel makes it while the packet leaves. So each
// beat needs an injection that worked, and few entries live at a time. It waits
// for nothing else, since records wait for it.
func (t *Tap) beat(ctx context.Context) {
	b := t.beats
	_, _, err := t.inj.inject(b.entries[:b.ahead])
	b.failed(err)
	tick := time.NewTicker(time.Second / time.Duration(t.cfg.BeatRate))
	defer tick.Stop()
	turn := make([]conntable.Connection, 2)
	for i := 0; ; i = (i + 1) % len(b.entries) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.out(i, time.Now())
		err := t.pinger.ping(&b.entries[i])
		turn[0] = deletion(&b.entries[i])
		turn[1] = b.entries[(i+b.ahead)%len(b.entries)]
		_, _, ierr := t.inj.inject(turn)
		b.failed(errors.Join(err, ierr))
	}
}

// watch judges what comes of the heartbeat, and mends what others did to the
// tap. It may wait for the kernel's locks as long as somebody has them.
func (t *Tap) watch(ctx context.Context) {
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	t.excused = time.Now()
	guarded, tuned := t.excused, time.Time{}
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		t.judge(t.beats.failure())
		if now.Sub(guarded) >= guardEvery {
			t.keepGuard()
			guarded = now
		}
		if t.cfg.RefreshPeriod == 0 && now.Sub(tuned) >= retuneEvery {
			t.beats.failed(t.retune())
			tuned = now
		}
	}
}

// judge decides whether the capture works, and mends what it can. trouble is
// what failed since it last did.
func (t *Tap) judge(trouble error) {
	reason := t.mendSettings()
	if r := t.mendInterface(); r != "" {
		reason = r
	}
	if r := t.mendThreads(); r != "" {
		reason = r
	}
	last := t.LastBeat()
	if (last.IsZero() || time.Since(last) >= silentAfter) && t.noServices() {
		t.excused = time.Now()
		t.ready()
	}
	if t.excused.After(last) {
		last = t.excused
	}
	silent, stuck := time.Since(last), t.inj.trouble.Load()
	switch {
	case reason != "":
	case trouble != nil:
		reason = firstLine(trouble)
	case stuck != nil:
		reason = *stuck
	case silent >= silentAfter:
		reason = fmt.Sprintf("for %d s no heartbeat from %v to %v came back; does a firewall drop them or the injected records on lo, or is %s down?",
			int(silent.Seconds()), beatNet, beatAddr, t.cfg.Interface)
	}
	t.setProblem(reason)
	if reason != "" {
		t.ready()
	}
}

// noServices says whether IPVS has no virtual service: then it may not look
// at packets at all, and no heartbeat is due.
func (t *Tap) noServices() bool {
	services, err := t.client.Services()
	return err == nil && len(services) == 0
}

// mendSettings puts the kernel's settings back that somebody changed, and says
// what is wrong if it cannot. A wrong one may harm without a sign: with
// sync_persist_mode nothing is told of a persistent client, with sync_version 0
// nothing of IPv6.
func (t *Tap) mendSettings() string {
	for _, want := range t.cfg.sysctls() {
		if r := t.refresh.Load(); want.Name == sysctlRefresh && r != 0 {
			want.Was = seconds(time.Duration(r))
		}
		now, err := readSysctl(want.Name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && want.holds(now) {
			continue
		}
		if err == nil {
			err = want.apply()
		}
		if err != nil {
			return fmt.Sprintf("sysctl net.ipv4.vs.%s should be %q: %v", want.Name, want.Was, err)
		}
		t.log.Warn("somebody changed a setting that syncd needs; put back", "sysctl", "net.ipv4.vs."+want.Name, "was", now, "is", want.Was)
	}
	return ""
}

// mendInterface sets the tap's interface up again if somebody changed it, and
// says what is wrong if it cannot. If it is gone, so is its file, and capture
// sees it.
func (t *Tap) mendInterface() string {
	err := checkTUN(t.cfg.Interface)
	if err == nil || errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, netlink.ErrDumpInterrupted) {
		return "" // where addresses changed during the look, the next one shows
	}
	if err := setupTUN(t.cfg.Interface); err != nil {
		return err.Error()
	}
	t.log.Warn("somebody changed the tap's interface; put back", "err", err)
	return ""
}

// reopen makes the tap's interface anew that somebody deleted. The master thread
// has a socket of the old one; it is started again when its absence is seen.
func (t *Tap) reopen() error {
	t.log.Warn("somebody deleted the tap's interface; making it anew", "interface", t.cfg.Interface)
	t.linking.Lock()
	defer t.linking.Unlock()
	if err := t.client.StopDaemon(Master); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	tun, err := openTUN(t.cfg.Interface)
	if err != nil {
		return err
	}
	t.tun.Swap(tun).Close()
	if err := setupTUN(t.cfg.Interface); err != nil {
		t.log.Warn("set up the tap's interface anew; trying again", "err", err)
	}
	return nil
}

// mendThreads starts a sync thread of ours that somebody stopped, and says
// what is wrong if it cannot.
func (t *Tap) mendThreads() string {
	daemons, err := t.client.Daemons()
	if err != nil {
		return err.Error()
	}
	for _, want := range t.cfg.daemons() {
		i := slices.IndexFunc(daemons, func(d Daemon) bool { return d.Role == want.Role })
		switch {
		case i >= 0 && t.cfg.ours(daemons[i]):
		case i >= 0:
			return t.cfg.foreign(daemons[i])
		default:
			if err := t.restart(want); err != nil {
				return err.Error()
			}
			t.log.Warn("somebody stopped a sync thread; started again", "thread", want.Role.String())
		}
	}
	return ""
}

// restart starts a sync thread of ours again. The master thread sends from
// whatever address it finds, so it must find ours.
func (t *Tap) restart(d Daemon) error {
	if d.Role == Backup {
		return t.client.StartDaemon(d)
	}
	t.linking.Lock()
	defer t.linking.Unlock()
	if err := checkTUN(t.cfg.Interface); err != nil {
		return err
	}
	return t.client.StartDaemon(d)
}

// firstLine is one of joined errors, which mostly are the same one again.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// setProblem says why the capture is degraded; nothing if it works.
func (t *Tap) setProblem(reason string) {
	old := t.problem.Load()
	switch {
	case reason == "" && old != nil:
		t.problem.Store(nil)
		t.log.Info("capture works again", "was", *old)
	case reason != "":
		t.problem.Store(&reason)
		if old == nil {
			t.log.Warn("capture degraded", "reason", reason)
		}
	}
}

// keepGuard puts the guard back if somebody flushed the ruleset.
func (t *Tap) keepGuard() {
	if ok, err := t.guard.present(); err != nil || ok {
		return
	}
	if t.guarded.Load() {
		t.log.Warn("somebody removed our nftables table; putting it back", "table", t.cfg.Interface)
	}
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
		err = t.inj.settle(context.Background())
	}
	if err != nil {
		t.log.Debug("heartbeat entries are left to expire", "err", err)
	}
}
