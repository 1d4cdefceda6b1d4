package ipvs

import (
	"testing"
	"time"
)

// TestRefreshFor: the period follows the smallest timeout that packets start
// again.
func TestRefreshFor(t *testing.T) {
	const s = time.Second
	usual := Timeouts{900 * s, 120 * s, 300 * s}
	persistent := func(seconds uint32) []Service { return []Service{{}, {Flags: ServicePersistent, Timeout: seconds}} }
	for name, tt := range map[string]struct {
		timeouts Timeouts
		services []Service
		want     time.Duration
	}{
		"the kernel's own":       {usual, []Service{{Timeout: 0}}, 60 * s},
		"a short UDP":            {Timeouts{900 * s, 120 * s, 100 * s}, nil, 33 * s},
		"a very short UDP":       {Timeouts{900 * s, 120 * s, 5 * s}, nil, 10 * s},
		"a short persistence":    {usual, persistent(50), 16 * s},
		"a long persistence":     {usual, persistent(3600), 60 * s},
		"FIN_WAIT is no talking": {Timeouts{900 * s, 10 * s, 300 * s}, nil, 60 * s},
		"UDP's is not told":      {Timeouts{TCP: 90 * s}, nil, 30 * s},
		"nothing is told":        {Timeouts{}, nil, 10 * s},
	} {
		if got := refreshFor(tt.timeouts, tt.services); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestRetune: a changed timeout changes the kernel's refresh period.
func TestRetune(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	eventually(t, "the period for the kernel's own timeouts", func() bool { return tap.Stats().Refresh == 60*time.Second })
	if err := ipvsadm("--set", "600", "100", "90"); err != nil {
		t.Fatal(err)
	}
	got, err := tap.client.Timeouts()
	if want := (Timeouts{600 * time.Second, 100 * time.Second, 90 * time.Second}); err != nil || got != want {
		t.Errorf("timeouts %+v, %v; want %+v", got, err, want)
	}
	if err := tap.retune(); err != nil {
		t.Fatal(err)
	}
	if now, err := readSysctl(sysctlRefresh); err != nil || now != "30" {
		t.Errorf("%s is %s, %v; want 30", sysctlRefresh, now, err)
	}
}
