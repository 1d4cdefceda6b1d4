package syncd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The audit takes its share of a core and no more, whatever it has to read.
func TestPacerKeepsToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used time.Duration
		p := newPacer(0.02, time.Second, func() time.Duration { return used })
		p.start()
		start := time.Now()
		for range 10_000 {
			if !p.afford(t.Context(), 0) {
				t.Fatal("ended")
			}
			used += 7 * time.Millisecond
		}
		took := time.Since(start)
		if most := time.Duration(0.02*float64(took)) + time.Second + 7*time.Millisecond; used > most {
			t.Errorf("%v of CPU in %v; want at most %v", used, took, most)
		}
		if took > time.Duration(float64(used)/0.019) {
			t.Errorf("%v of CPU took %v: the share is not used", used, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if p.afford(ctx, time.Second) {
			t.Error("afford goes on without its context")
		}
	})
}
