package task

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFirstErrorEndsAllAndNamesTheTask(t *testing.T) {
	boom := errors.New("boom")
	ended := false
	err := Run(t.Context(), nil,
		Func{"waiter", func(ctx context.Context) error { <-ctx.Done(); ended = true; return nil }},
		Func{"breaker", func(context.Context) error { return boom }})
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "breaker: ") {
		t.Errorf("Run: %v", err)
	}
	if !ended {
		t.Error("Run returned before every task had")
	}
}

type gated struct {
	Func
	up chan struct{}
}

func (g gated) Ready() <-chan struct{} { return g.up }

func TestReadyWaitsForEveryTask(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := gated{Func{"gated", func(ctx context.Context) error { <-ctx.Done(); return nil }}, make(chan struct{})}
	opened, called := false, make(chan bool, 1)
	opener := Func{"opener", func(context.Context) error { opened = true; close(g.up); return nil }}
	done := make(chan error, 1)
	go func() { done <- Run(ctx, func() { called <- opened }, g, opener) }()
	if !<-called {
		t.Error("ready was called before the gated task was ready")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
