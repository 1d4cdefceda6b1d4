package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"saru/internal/task"
)

const (
	stateStopping = sd.SdNotifyStopping
	// statusEvery is how often systemd is told how we are.
	statusEvery = 10 * time.Second
)

// A watchdog tells systemd how we are, and that we live: the engine's locks
// can be taken and its news goes out. Where that is not so it falls silent, and
// systemd starts us anew. It is a task.
type watchdog struct {
	log    *slog.Logger
	engine *Engine
	every  time.Duration
	limit  time.Duration // 0: nobody waits for us
}

// newWatchdog returns nil where systemd does not listen.
func newWatchdog(log *slog.Logger, e *Engine) *watchdog {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	w := &watchdog{log: log, engine: e, every: statusEvery}
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog", "err", err)
	}
	if limit > 0 {
		w.limit, w.every = limit, min(limit/3, statusEvery)
	}
	return w
}

// Run notifies until ctx ends.
func (w *watchdog) Run(ctx context.Context) error {
	var before progress
	return every(ctx, w.every, func() {
		now, line := w.look() // waits for what is stuck
		if now.stuckSince(&before, w.limit) {
			w.log.Error("news does not go out; systemd's watchdog is left to act", "waiting", now.waiting)
			return
		}
		if now.done != before.done || before.waiting == 0 || now.waiting == 0 {
			before = now
		}
		state := "STATUS=" + line
		if w.limit > 0 {
			state += "\n" + sd.SdNotifyWatchdog
		}
		notify(w.log, state)
	})
}

// Ready is always closed.
func (w *watchdog) Ready() <-chan struct{} { return task.Func{}.Ready() }

func (w *watchdog) String() string { return "watchdog" }

// progress is of the queue of news for the peers.
type progress struct {
	at      time.Time
	waiting int
	done    uint64
}

// stuckSince reports whether nothing that waits went out for half of limit.
func (p *progress) stuckSince(before *progress, limit time.Duration) bool {
	return limit > 0 && p.waiting > 0 && p.done == before.done && before.waiting > 0 && p.at.Sub(before.at) > limit/2
}

func (w *watchdog) look() (progress, string) {
	peers := w.engine.session.Peers()
	up := 0
	for i := range peers {
		if peers[i].State != "silent" {
			up++
		}
	}
	state := "joining"
	if w.engine.Synced() {
		state = "synced"
	}
	line := fmt.Sprintf("%s, %d of %d peers up, %d connections", state, up, len(peers), w.engine.table.Len())
	waiting, done := w.engine.toPeers.progress()
	return progress{time.Now(), waiting, done}, line
}

func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Debug("tell systemd", "err", err)
	}
}
