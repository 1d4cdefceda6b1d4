package logs

import (
	"context"
	"log/slog"
	"testing"

	"saru/internal/config"
)

func TestUnknownFacilityIsBadInput(t *testing.T) {
	if _, err := New("saru", "mail9", false); config.ExitStatus(err) != 2 {
		t.Errorf("New: %v, want bad input", err)
	}
}

func TestDebugFlag(t *testing.T) {
	for _, debug := range []bool{false, true} {
		l, err := New("saru", "-", debug)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Enabled(context.Background(), slog.LevelDebug); got != debug {
			t.Errorf("debug=%v: debug records enabled = %v", debug, got)
		}
	}
}
