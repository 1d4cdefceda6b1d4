package director

import (
	"context"
	"time"

	"saru/internal/control"
	"saru/internal/task"
)

const (
	askSyncdEvery = 200 * time.Millisecond
	// askSyncedEvery is for a syncd that holds all: the question costs both
	// more than a heartbeat.
	askSyncedEvery = time.Second
	// coldWait is how long a syncd may take to read its kernel when nobody
	// serves.
	coldWait = 2 * time.Second
)

// A gate asks the own syncd whether this node holds the cluster's connections,
// and tells the engine. It is a task.
type gate struct {
	engine *Engine
	client *control.Client
	delay  time.Duration
	up     chan struct{}

	told, degraded string // owned by the engine
}

func newGate(e *Engine, socket string, delay time.Duration) *gate {
	return &gate{engine: e, client: control.NewClient(socket), delay: delay, up: make(chan struct{})}
}

// Ready is closed when syncd is asked.
func (g *gate) Ready() <-chan struct{} { return g.up }

func (g *gate) String() string { return "state gate" }

// Run asks until ctx ends.
func (g *gate) Run(ctx context.Context) error {
	close(g.up)
	for start := time.Now(); ; {
		full, cold, told, degraded := g.judge(ctx, time.Since(start))
		g.engine.post(ctx, func(now time.Duration) {
			g.told, g.degraded = told, degraded
			g.engine.core.SetGate(now, full, cold)
		})
		wait := askSyncdEvery
		if full {
			wait = askSyncedEvery
		}
		if !task.Pause(ctx, wait) {
			return nil
		}
	}
}

// judge returns whether this node may have a share (full), whether it may if
// nobody else serves (cold), what it found, and what is wrong with syncd.
func (g *gate) judge(ctx context.Context, up time.Duration) (full, cold bool, told, degraded string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var st struct {
		Synced   bool   `json:"synced"`
		Degraded string `json:"degraded"`
	}
	switch err := g.client.Get(ctx, "/status", &st); {
	case err != nil:
		return up >= g.delay, true, "no syncd answers", ""
	case st.Synced && st.Degraded != "":
		return true, true, "synced, and degraded: " + st.Degraded, st.Degraded
	case st.Synced:
		return true, true, "synced", ""
	}
	return false, up >= coldWait, "syncd is not synced yet", st.Degraded
}
