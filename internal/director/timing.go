package director

import (
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/config"
)

const (
	defaultLease = 300 * time.Millisecond
	fastLease    = 60 * time.Millisecond
	minLease     = fastLease
	maxLease     = 10 * time.Second

	// lateJiffies is by how many jiffies a kernel's timer may be late; the
	// watchers of a lease allow for it as if all kernels had slowestHZ.
	lateJiffies = 6
	slowestHZ   = 250
)

// timing reads the lease and the delay. The profile "fast" is a lease of 60 ms
// and an interval of 10 ms.
func (f *File) timing(s *Settings) error {
	switch f.Timing.Profile {
	case "default":
	case "fast":
		if s.Lease != defaultLease && s.Lease != fastLease {
			return config.Bad("timing.lease = %q: the profile \"fast\" has a lease of %v; remove one of the two keys", s.Lease, fastLease)
		}
		s.Lease = fastLease
		if hz := kernelHZ(); hz < slowestHZ {
			return config.Bad("timing.profile = \"fast\": this kernel's timers have %d Hz, %d are needed; use \"default\"", hz, slowestHZ)
		}
	default:
		return config.Bad("timing.profile = %q: no such value; use \"default\" or \"fast\"", f.Timing.Profile)
	}
	if s.Lease < minLease || s.Lease > maxLease {
		return config.Bad("timing.lease = %q: use %v to %v", s.Lease, minLease, maxLease)
	}
	if s.kernelLease(kernelHZ()) < minLease/2 {
		return config.Bad("timing.lease = %q: this kernel's timers, of %d Hz, are too coarse for it; use a longer one", s.Lease, kernelHZ())
	}
	if s.Delay != 0 && s.Delay < time.Millisecond || s.Delay > time.Hour {
		return config.Bad("timing.delay = %q: use \"0s\", or \"1ms\" to \"1h\"", s.Delay)
	}
	return nil
}

// Interval is the time between two ticks: six in a lease.
func (s *Settings) Interval() time.Duration { return s.Lease / 6 }

// KernelLease is the lease that this kernel holds: shorter than what the others
// wait for by as much as its timers may be later than they think.
func (s *Settings) KernelLease() time.Duration { return s.kernelLease(kernelHZ()) }

func (s *Settings) kernelLease(hz int) time.Duration {
	late, allowed := lateJiffies*time.Second/time.Duration(hz), lateJiffies*time.Second/slowestHZ
	return s.Lease - max(0, late-allowed)
}

// kernelHZ is how many jiffies a second has: the coarse clock advances with
// them (time(7)).
func kernelHZ() int {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil || tick.Nano() <= 0 {
		return 100 // the slowest that there is
	}
	return int(time.Second / time.Duration(tick.Nano()))
}
