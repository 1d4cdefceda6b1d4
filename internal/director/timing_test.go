package director

import (
	"strings"
	"testing"
	"time"

	"saru/internal/config"
)

func TestTiming(t *testing.T) {
	for name, c := range map[string]struct {
		profile string
		lease   time.Duration
		is      time.Duration
		refused string
	}{
		"default":           {"default", 300 * time.Millisecond, 300 * time.Millisecond, ""},
		"a lease":           {"default", 2 * time.Second, 2 * time.Second, ""},
		"fast":              {"fast", 300 * time.Millisecond, 60 * time.Millisecond, ""},
		"fast and its own":  {"fast", 60 * time.Millisecond, 60 * time.Millisecond, ""},
		"fast and another":  {"fast", 100 * time.Millisecond, 0, `timing.lease = "100ms"`},
		"no such profile":   {"slow", 300 * time.Millisecond, 0, `timing.profile = "slow"`},
		"shorter than fast": {"default", 50 * time.Millisecond, 0, `timing.lease = "50ms"`},
		"too long":          {"default", time.Minute, 0, `timing.lease = "1m0s"`},
	} {
		f := DefaultFile()
		f.Timing.Profile, f.Timing.Lease = c.profile, config.Duration(c.lease)
		s := &Settings{Lease: c.lease}
		err := f.timing(s)
		if c.refused != "" {
			if err == nil || config.ExitStatus(err) != config.BadInputStatus || !strings.HasPrefix(err.Error(), c.refused) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if kernelHZ() < slowestHZ {
			continue
		}
		if err != nil || s.Lease != c.is || s.Interval() != c.is/6 {
			t.Errorf("%s: lease %v, interval %v, %v", name, s.Lease, s.Interval(), err)
		}
	}
}

// Where the kernel's timers are coarser than the others allow for, it holds a
// shorter lease.
func TestKernelLease(t *testing.T) {
	s := &Settings{Lease: 300 * time.Millisecond}
	for hz, want := range map[int]time.Duration{1000: 300, 250: 300, 100: 264} {
		if got := s.kernelLease(hz); got != want*time.Millisecond {
			t.Errorf("%d Hz: %v, want %v ms", hz, got, want)
		}
	}
	if hz := kernelHZ(); hz < 100 || hz > 10000 {
		t.Errorf("this kernel has %d Hz", hz)
	}
}
