package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"saru/internal/config"
)

func TestUnknownFacilityIsBadInput(t *testing.T) {
	if _, _, err := New("saru", "mail9", slog.LevelInfo); config.ExitStatus(err) != 2 {
		t.Errorf("New: %v, want bad input", err)
	}
}

// The level can change while the log is in use.
func TestLevel(t *testing.T) {
	var level slog.LevelVar
	l, end, err := New("saru", "-", &level)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	for _, debug := range []bool{false, true, false} {
		level.Set(slog.LevelInfo)
		if debug {
			level.Set(slog.LevelDebug)
		}
		if got := l.Enabled(context.Background(), slog.LevelDebug); got != debug {
			t.Errorf("debug=%v: debug records enabled = %v", debug, got)
		}
	}
}

// A terminal that takes nothing while it is held.
type terminal struct {
	mu    sync.Mutex
	text  strings.Builder
	fails bool
}

func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails {
		return 0, errors.New("broken pipe")
	}
	return w.text.Write(p)
}

// All lines come in order, and the end waits for them.
func TestLinesComeInOrder(t *testing.T) {
	w := &terminal{}
	log, end := toTerminal(w, slog.LevelInfo)
	for i := range 1000 {
		log.Info("line", "n", i)
	}
	end()
	lines := strings.Split(strings.TrimSpace(w.text.String()), "\n")
	if len(lines) != 1000 {
		t.Fatalf("%d of 1000 lines", len(lines))
	}
	for i, l := range lines {
		if !strings.HasSuffix(l, fmt.Sprintf("n=%d", i)) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	log.Info("after the end") // nobody waits for it, and it does no harm
}

// Whoever logs does not wait for a reader that stands still; how much was lost
// meanwhile is told when it goes on, and no more is kept than there is room for.
func TestReaderStandsStill(t *testing.T) {
	w := &terminal{}
	log, end := toTerminal(w, slog.LevelInfo)
	w.mu.Lock()
	long := strings.Repeat("x", 1000)
	const many = 3 * maxWaiting / 1000
	for range many {
		log.Info(long)
	}
	w.mu.Unlock()
	end()
	got := w.text.String()
	if n := len(got); n < maxWaiting/2 || n > maxWaiting+1000 {
		t.Errorf("%d bytes were kept, want at most %d", n, maxWaiting)
	}
	var dropped int
	_, told, _ := strings.Cut(got, "lines_dropped=")
	if _, err := fmt.Sscan(told, &dropped); err != nil || dropped+strings.Count(got, long) != many {
		t.Errorf("%d dropped and %d written of %d: %v", dropped, strings.Count(got, long), many, err)
	}
}

// The end of a program waits for such a reader for a moment only.
func TestEndBesideAReaderThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		log, end := toTerminal(reader(func() { <-goOn }), slog.LevelInfo)
		log.Info("line")
		start := time.Now()
		end()
		if d := time.Since(start); d != closeWithin {
			t.Errorf("the end took %v, want %v", d, closeWithin)
		}
		close(goOn)
	})
}

type reader func()

func (r reader) Write(p []byte) (int, error) { r(); return len(p), nil }

// One that went away costs its lines and nothing else.
func TestReaderGoesAway(t *testing.T) {
	w := &terminal{fails: true}
	log, end := toTerminal(w, slog.LevelInfo)
	log.Info("line")
	end()
}
