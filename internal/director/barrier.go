package director

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/internal/control"
	"saru/membership"
)

const (
	// barriersWaiting bounds the barriers that wait to be asked for; the
	// protocol goes on without the answer of one that finds no room.
	barriersWaiting = 64
	// barriersAtOnce bounds the questions that syncd has at a time.
	barriersAtOnce = 8
)

// A barrier is what the protocol wants to know before a bucket moves: that
// the connections are where the packets will come.
type barrier struct {
	token uint64
	peer  string // its name
	back  bool   // of membership.Action.Back
}

// barriers asks the own syncd, and tells the engine when a barrier is reached.
// Without a syncd there is nothing to wait for. It is a task.
type barriers struct {
	log      *slog.Logger
	engine   *Engine
	client   *control.Client
	requests chan barrier
	up       chan struct{}
}

func newBarriers(log *slog.Logger, e *Engine, socket string) *barriers {
	return &barriers{log: log, engine: e, client: control.NewClient(socket), requests: make(chan barrier, barriersWaiting), up: make(chan struct{})}
}

// Ready is closed when requests are served.
func (b *barriers) Ready() <-chan struct{} { return b.up }

func (b *barriers) String() string { return "barriers" }

// request asks for one. It never waits.
func (b *barriers) request(r barrier) {
	select {
	case b.requests <- r:
	default:
	}
}

// Run serves until ctx ends.
func (b *barriers) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(barriersAtOnce)
	close(b.up)
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case r := <-b.requests:
			g.Go(func() error { b.wait(ctx, r); return nil })
		}
	}
}

func (b *barriers) wait(ctx context.Context, r barrier) {
	limited, cancel := context.WithTimeout(ctx, membership.DefaultBarrierWait)
	defer cancel()
	start := time.Now()
	err := b.client.Post(limited, "/barrier", map[string]any{"peer": r.peer, "back": r.back}, nil)
	if limited.Err() != nil {
		return // the protocol has stopped waiting by itself, and counts it
	}
	if err != nil {
		b.log.Debug("no barrier, connections may come late", "peer", r.peer, "back", r.back, "err", err)
	} else {
		b.log.Debug("barrier", "peer", r.peer, "back", r.back, "took", time.Since(start))
	}
	b.engine.post(ctx, func(now time.Duration) { b.engine.core.BarrierDone(now, r.token) })
}
