package director

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/internal/control"
	"saru/internal/task"
	"saru/membership"
)

const (
	// barriersWaiting bounds the barriers that wait to be asked for; the
	// protocol goes on without the answer of one that finds no room.
	barriersWaiting = 64
	// barriersAtOnce bounds the questions that syncd has at a time.
	barriersAtOnce = 8
	// refusedFor is for how long a syncd that says it cannot reach a barrier is
	// asked again: the other's may have just started, or has no syncd at all.
	refusedFor   = 2 * time.Second
	refusedAgain = 200 * time.Millisecond
)

// A barrier is what the protocol wants to know before a bucket moves: that
// the connections are where the packets will come.
type barrier struct {
	token uint64
	peer  string // its name
	back  bool   // of membership.Action.Back
}

// barriers asks the own syncd, and tells when a barrier is reached. Without a
// syncd there is nothing to wait for. It also has syncd tell of handshakes, for
// which nobody waits. It is a task.
type barriers struct {
	log      *slog.Logger
	reached  func(ctx context.Context, token uint64)
	client   *control.Client
	requests chan barrier
	half     chan struct{} // handshakes are to be told
	up       chan struct{}
}

func newBarriers(log *slog.Logger, socket string, reached func(ctx context.Context, token uint64)) *barriers {
	return &barriers{
		log: log, reached: reached, client: control.NewClient(socket), requests: make(chan barrier, barriersWaiting),
		half: make(chan struct{}, 1), up: make(chan struct{}),
	}
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

// handshakes has the other directors told of the handshakes that are under way, of
// which some are in buckets that this one gives away. It never waits.
func (b *barriers) handshakes() {
	select {
	case b.half <- struct{}{}:
	default: // the question that waits covers these too
	}
}

// tellHandshakes asks the own syncd for that, one question after another.
func (b *barriers) tellHandshakes(ctx context.Context) {
	why := "" // not all were told, the last time
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.half:
		}
		limited, cancel := context.WithTimeout(ctx, membership.DefaultBarrierWait)
		var told struct{ Told int }
		err := b.client.Post(limited, "/handshakes", nil, &told)
		cancel()
		switch {
		case errors.Is(err, control.ErrNotRunning) || ctx.Err() != nil:
		case err != nil && err.Error() == why: // twice a second while buckets move
		case err != nil:
			why = err.Error()
			b.log.Info("handshakes under way were not told to the other directors: those that last longer than the client waits for the first answer may fail", "err", err)
		default:
			why = ""
			b.log.Debug("handshakes told", "connections", told.Told)
		}
	}
}

// Run serves until ctx ends.
func (b *barriers) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(barriersAtOnce + 1)
	g.Go(func() error { b.tellHandshakes(ctx); return nil })
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
	for {
		err := b.client.Post(limited, "/barrier", map[string]any{"peer": r.peer, "back": r.back}, nil)
		switch {
		case limited.Err() != nil:
			return // the protocol has stopped waiting by itself, and counts it
		case err == nil:
			b.log.Debug("barrier", "peer", r.peer, "back", r.back, "took", time.Since(start))
		case !errors.Is(err, control.ErrNotRunning) && time.Since(start) < refusedFor:
			task.Pause(limited, refusedAgain)
			continue
		default:
			b.log.Info("no barrier: connections may come late", "peer", r.peer, "back", r.back, "err", err)
		}
		b.reached(ctx, r.token)
		return
	}
}
