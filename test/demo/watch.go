package demo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"saru/internal/control"
)

// A status is the part of "saru status --json" that the timeline shows.
type status struct {
	Node    string `json:"node"`
	State   string `json:"state"`
	Members []struct {
		Name    string `json:"name"`
		State   string `json:"state"`
		Buckets int    `json:"buckets"`
	} `json:"members"`
	Share struct {
		Buckets int `json:"buckets"`
	} `json:"share"`
}

const buckets = 256

// counts reports whether s counts the director name as one that works.
func (s status) counts(name string) bool {
	for _, m := range s.Members {
		if m.Name == name {
			return m.Buckets > 0
		}
	}
	return false
}

// A watcher asks the directors' daemons what they think.
type watcher struct {
	mu      sync.Mutex
	sockets map[string]string // of the directors under power, by name
}

func (w *watcher) up(name, socket string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sockets == nil {
		w.sockets = map[string]string{}
	}
	w.sockets[name] = socket
}

func (w *watcher) down(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sockets, name)
}

// ask returns the status of every director that answers.
func (w *watcher) ask(ctx context.Context) map[string]status {
	w.mu.Lock()
	sockets := make(map[string]string, len(w.sockets))
	for n, s := range w.sockets {
		sockets[n] = s
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]status{}
	for name, socket := range sockets {
		wg.Go(func() {
			var s status
			if control.NewClient(socket).Get(ctx, "/status", &s) == nil {
				mu.Lock()
				out[name] = s
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out
}

// until asks again and again until ok, and returns how long after start that
// was.
func (w *watcher) until(ctx context.Context, start time.Time, every, limit time.Duration, what string, ok func(map[string]status) bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last map[string]status
	for {
		if seen := w.ask(ctx); ctx.Err() == nil {
			last = seen
			if ok(seen) {
				return time.Since(start), nil
			}
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return -1, fmt.Errorf("%s: not within %v; last seen: %s", what, limit, describe(last))
		}
	}
}

func describe(seen map[string]status) string {
	if len(seen) == 0 {
		return "no director answers"
	}
	var parts []string
	for name, s := range seen {
		parts = append(parts, fmt.Sprintf("%s is %s with %d buckets", name, s.State, s.Share.Buckets))
	}
	slices.Sort(parts)
	return fmt.Sprint(parts)
}

// whole reports whether the directors seen have every bucket open, and at
// least n of them a share.
func whole(seen map[string]status, n int) bool {
	sum, serving := 0, 0
	for _, s := range seen {
		sum += s.Share.Buckets
		if s.Share.Buckets > 0 {
			serving++
		}
	}
	return sum == buckets && serving >= n
}
