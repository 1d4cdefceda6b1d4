package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"saru/internal/control"
	"saru/internal/task"
	"saru/test/traffic"
)

// silenceLimit is for how long a user would wait for an answer or for the
// next byte before giving up.
const silenceLimit = 60 * time.Second

// A clientPlan is what the client's process is told, as JSON in a file.
type clientPlan struct {
	Plan   Plan
	VIP    string
	Files  []traffic.File
	Socket string // where it answers GET /totals, GET /flows and POST /stop
}

// ClientMain is the client's process: it makes the traffic of the plan in the
// file until it is told to stop. It runs in the client's network namespace.
func ClientMain(planFile string) error {
	b, err := os.ReadFile(planFile)
	if err != nil {
		return err
	}
	var p clientPlan
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("%s: %w", planFile, err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	return p.run(ctx)
}

func (p *clientPlan) run(ctx context.Context) error {
	log := traffic.NewLog()
	stop, done := make(chan struct{}), make(chan struct{})
	stopOnce := sync.OnceFunc(func() { close(stop) })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /totals", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, log.Totals()) })
	mux.HandleFunc("GET /flows", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, log.Flows()) })
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		stopOnce()
		select {
		case <-done:
		case <-r.Context().Done():
		}
	})
	srv, err := control.Listen("client", p.Socket, mux)
	if err != nil {
		return err
	}
	work := task.Func{Name: "traffic", Do: func(ctx context.Context) error {
		p.traffic(ctx, log, stop)
		close(done)
		return nil
	}}
	return task.Run(ctx, nil, srv, work)
}

func (p *clientPlan) traffic(ctx context.Context, log *traffic.Log, stop <-chan struct{}) {
	web, lines := fmt.Sprintf("%s:%d", p.VIP, httpPort), fmt.Sprintf("%s:%d", p.VIP, linePort)
	var wg sync.WaitGroup
	// A few starts at a time: the cluster is to be shown at work, not a
	// thundering herd.
	start := func(run func(context.Context, <-chan struct{})) {
		wg.Go(func() { run(ctx, stop) })
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	start((&traffic.Shorter{Log: log, To: web, Path: "/short", Pace: p.Plan.Short, Limit: 10 * time.Second, Tries: 3}).Run)
	for i := range p.Plan.Quiet4 {
		start((&traffic.Quieter{Log: log, ID: i, To: lines, Every: 4 * time.Second, Silence: silenceLimit}).Run)
	}
	for i := range p.Plan.Quiet45 {
		start((&traffic.Quieter{Log: log, ID: i + p.Plan.Quiet4, To: lines, Every: 45 * time.Second, Silence: silenceLimit}).Run)
	}
	for i := range p.Plan.Downloads {
		start((&traffic.Downloader{Log: log, ID: i, To: web, Files: p.Files, Silence: silenceLimit}).Run)
	}
	wg.Wait()
}
