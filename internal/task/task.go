// Package task runs a daemon's parts: each is a task, all live under one
// errgroup, and the daemon is ready when every one of them is.
//
// What must hold: when Run returns, every task has returned; the first error
// ends them all.
package task

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Task is one goroutine's work.
type Task interface {
	// Run works until ctx ends, then returns nil; any other return ends the
	// daemon.
	Run(ctx context.Context) error
	// Ready is closed once the task does its work.
	Ready() <-chan struct{}
	// String names the task in errors.
	String() string
}

// Run runs the tasks until ctx ends or one of them fails. ready, unless nil,
// is called once when all are ready.
func Run(ctx context.Context, ready func(), tasks ...Task) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	if ready != nil {
		g.Go(func() error {
			for _, t := range tasks {
				select {
				case <-t.Ready():
				case <-ctx.Done():
					return nil
				}
			}
			ready()
			return nil
		})
	}
	return g.Wait()
}

// Func is a Task made of a function, ready from the start.
type Func struct {
	Name string
	Do   func(ctx context.Context) error
}

var always = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Run calls f.Do.
func (f Func) Run(ctx context.Context) error { return f.Do(ctx) }

// Ready is always closed.
func (f Func) Ready() <-chan struct{} { return always }

func (f Func) String() string { return f.Name }

// Pause waits for d, and reports whether ctx goes on.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
