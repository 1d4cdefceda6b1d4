package seal

import (
	"hash/maphash"
	"net/netip"
	"time"
)

const (
	limiterBuckets = 256
	limiterBurst   = 64
	limiterEvery   = time.Second / 32
)

// A limiter lets through limiterBurst of each address at once, and one more
// each limiterEvery. Addresses share buckets, in a way that nobody outside
// knows.
type limiter struct {
	seed    maphash.Seed
	buckets [limiterBuckets]struct {
		used int
		at   time.Time
	}
}

func (l *limiter) allow(from netip.Addr, now time.Time) bool {
	a := from.As16()
	b := &l.buckets[maphash.Bytes(l.seed, a[:])%limiterBuckets]
	if back := int(now.Sub(b.at) / limiterEvery); back >= b.used {
		b.used, b.at = 0, now
	} else if back > 0 {
		// What is left of a step counts for the next one.
		b.used, b.at = b.used-back, b.at.Add(time.Duration(back)*limiterEvery)
	}
	if b.used >= limiterBurst {
		return false
	}
	b.used++
	return true
}
