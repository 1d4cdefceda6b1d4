package logs

import (
	"context"
	"log/slog"
	"testing"

	"saru/internal/config"
)

func TestUnknownFacilityIsBadInput(t *testing.T) {
	if _, err := New("saru", "mail9", slog.LevelInfo); config.ExitStatus(err) != 2 {
		t.Errorf("New: %v, want bad input", err)
	}
}

// The level can change while the log is in use.
func TestLevel(t *testing.T) {
	var level slog.LevelVar
	l, err := New("saru", "-", &level)
	if err != nil {
		t.Fatal(err)
	}
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
