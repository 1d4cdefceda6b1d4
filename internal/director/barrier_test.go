package director

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/internal/control"
)

// When buckets are given away, the own syncd is asked to tell of handshakes; what
// is given meanwhile is asked for once more, not each time.
func TestHandshakesAreToldAfterGiving(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "syncd.sock")
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /handshakes", func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		control.JSON(w, struct{ Told int }{3})
	})
	server, err := control.Listen("syncd", socket, mux)
	if err != nil {
		t.Fatal(err)
	}
	b := newBarriers(slog.New(slog.DiscardHandler), socket, nil)
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error { return b.Run(ctx) })
	<-server.Ready()
	b.handshakes()
	<-asked
	for range 5 {
		b.handshakes()
	}
	answer <- struct{}{}
	<-asked
	close(answer)
	b.handshakes()
	<-asked
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if len(asked) != 0 {
		t.Errorf("asked %d times more", len(asked))
	}
}

// A barrier is reached when the own syncd says so; one that cannot reach it yet
// is asked again; where none runs there is nothing to wait for.
func TestBarriers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "syncd.sock")
	asked := make(chan barrier, 10)
	reached := make(chan uint64, 10)
	answers := []int{http.StatusNotFound, http.StatusServiceUnavailable, http.StatusOK}
	b := newBarriers(slog.New(slog.DiscardHandler), socket, func(_ context.Context, token uint64) { reached <- token })
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	g.Go(func() error { return b.Run(ctx) })

	b.request(barrier{token: 1, peer: "d2"})
	if got := <-reached; got != 1 {
		t.Errorf("barrier %d is reached without a syncd", got)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /barrier", func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Peer string
			Back bool
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		asked <- barrier{peer: q.Peer, back: q.Back}
		w.WriteHeader(answers[min(len(asked), len(answers))-1])
	})
	server, err := control.Listen("syncd", socket, mux)
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error { return server.Run(ctx) })
	<-server.Ready()
	start := time.Now()
	b.request(barrier{token: 2, peer: "d3", back: true})
	if got := <-reached; got != 2 {
		t.Errorf("barrier %d is reached", got)
	}
	if len(asked) != 3 || time.Since(start) < 2*refusedAgain {
		t.Errorf("asked %d times in %v, want three", len(asked), time.Since(start))
	}
	for range len(asked) {
		if q := <-asked; q != (barrier{peer: "d3", back: true}) {
			t.Errorf("asked for %+v", q)
		}
	}
}
