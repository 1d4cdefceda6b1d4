package usersync_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"saru/ipvs/usersync"
)

// TestWatcher: only a module that is there now ends the waiting, and nothing
// asks the kernel to load it.
func TestWatcher(t *testing.T) {
	if !inside(t) {
		return
	}
	w, err := usersync.OpenWatcher()
	must(t, err)
	defer w.Close()
	blocks := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := w.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want to wait on", when, err)
		}
	}
	blocks("loaded before it watched")
	unload(t)
	must(t, insmod())
	unload(t)
	blocks("loaded, and unloaded again")
	must(t, insmod())
	must(t, w.Wait(t.Context()))
	blocks("told once")
	done := make(chan error, 1)
	unload(t)
	go func() { done <- w.Wait(t.Context()) }()
	must(t, insmod())
	must(t, <-done)
}
