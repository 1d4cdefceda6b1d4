package syncd

import (
	"hash/maphash"

	"saru/conntable"
)

// A seen is a set of keys that may also claim to have a key that was never
// added (B. Bloom, "Space/time trade-offs in hash coding with allowable
// errors", 1970). With 16 bits for each key it does so for 5 in 1,000, and
// for others the next time, since each seen hashes in its own way.
type seen struct {
	seed maphash.Seed
	bits []uint64
	mask uint64
}

const (
	seenBits   = 16 // for each key
	seenHashes = 4
)

// newSeen returns a set with room for n keys.
func newSeen(n int) *seen {
	words := uint64(64)
	for words*64 < uint64(n)*seenBits {
		words *= 2
	}
	return &seen{seed: maphash.MakeSeed(), bits: make([]uint64, words), mask: words*64 - 1}
}

func (s *seen) add(k *conntable.Key) {
	for h, i := maphash.Comparable(s.seed, *k), 0; i < seenHashes; i++ {
		s.bits[h&s.mask/64] |= 1 << (h % 64)
		h = next(h)
	}
}

func (s *seen) has(k *conntable.Key) bool {
	for h, i := maphash.Comparable(s.seed, *k), 0; i < seenHashes; i++ {
		if s.bits[h&s.mask/64]&(1<<(h%64)) == 0 {
			return false
		}
		h = next(h)
	}
	return true
}

// next makes another hash of one (the finaliser of SplitMix64).
func next(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
