package seal

import (
	"hash/maphash"
	"net/netip"
	"testing"
	"time"
)

// Whoever sends too fast is let through as often as was said, whatever the
// steps are in which it sends.
func TestLimiterKeepsItsRate(t *testing.T) {
	from := netip.MustParseAddr("10.0.0.9")
	for _, every := range []time.Duration{time.Millisecond, limiterEvery * 2 / 3, limiterEvery * 99 / 100} {
		l := limiter{seed: maphash.MakeSeed()}
		start := time.Now()
		now, got := start, 0
		const long = time.Minute
		for ; now.Sub(start) < long; now = now.Add(every) {
			if l.allow(from, now) {
				got++
			}
		}
		want := min(limiterBurst+int(long/limiterEvery), int(long/every))
		if got < want-1 || got > want+1 {
			t.Errorf("one each %v for %v: %d let through, want %d", every, long, got, want)
		}
		// And after a rest a burst, no more.
		now, got = now.Add(time.Hour), 0
		for range 2 * limiterBurst {
			if l.allow(from, now) {
				got++
			}
		}
		if got != limiterBurst {
			t.Errorf("after a rest %d let through at once, want %d", got, limiterBurst)
		}
	}
}
