package partition

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"
)

// MaxBuckets is the most buckets that a flow space can have. Their number is
// a power of two from 1 to MaxBuckets.
const MaxBuckets = 4096

// ValidBuckets reports whether n can be a number of buckets.
func ValidBuckets(n int) bool {
	return n >= 1 && n <= MaxBuckets && n&(n-1) == 0
}

// A Set is a set of buckets, numbered from 0 to MaxBuckets-1. The zero value
// is the empty set. It is a value: assignment copies it, == compares it.
type Set struct {
	words [MaxBuckets / 64]uint64
}

// SetOf returns the set of the given buckets.
func SetOf(buckets ...int) Set {
	var s Set
	for _, b := range buckets {
		s.Add(b)
	}
	return s
}

// FullSet returns the set of the buckets 0 to n-1.
func FullSet(n int) Set {
	var s Set
	for b := range n {
		s.Add(b)
	}
	return s
}

// Owned returns the buckets that owners, an assignment, gives to name.
func Owned(owners []string, name string) Set {
	var s Set
	for b, o := range owners {
		if o == name {
			s.Add(b)
		}
	}
	return s
}

// Add puts bucket b into s. It panics unless 0 <= b < MaxBuckets.
func (s *Set) Add(b int) { s.words[b/64] |= 1 << (b % 64) }

// Remove takes bucket b out of s. It panics unless 0 <= b < MaxBuckets.
func (s *Set) Remove(b int) { s.words[b/64] &^= 1 << (b % 64) }

// Has reports whether bucket b is in s; a number that is no bucket is not.
func (s *Set) Has(b int) bool {
	return b >= 0 && b < MaxBuckets && s.words[b/64]&(1<<(b%64)) != 0
}

// Len returns the number of buckets in s.
func (s *Set) Len() int {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty reports whether no bucket is in s.
func (s *Set) Empty() bool { return *s == Set{} }

// Union returns the buckets that are in s or in t.
func (s Set) Union(t Set) Set {
	for i := range s.words {
		s.words[i] |= t.words[i]
	}
	return s
}

// Intersect returns the buckets that are in s and in t.
func (s Set) Intersect(t Set) Set {
	for i := range s.words {
		s.words[i] &= t.words[i]
	}
	return s
}

// Minus returns the buckets that are in s and not in t.
func (s Set) Minus(t Set) Set {
	for i := range s.words {
		s.words[i] &^= t.words[i]
	}
	return s
}

// Equal reports whether s and t hold the same buckets.
func (s Set) Equal(t Set) bool { return s == t }

// Contains reports whether every bucket of t is in s.
func (s Set) Contains(t Set) bool {
	rest := t.Minus(s)
	return rest.Empty()
}

// All yields the buckets in ascending order.
func (s Set) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range s.words {
			for ; w != 0; w &= w - 1 {
				if !yield(i*64 + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

// AppendBits appends the buckets 0 to n-1 as a bitmap of (n+7)/8 bytes; bucket
// b is bit b%8 of byte b/8.
func (s Set) AppendBits(dst []byte, n int) []byte {
	var all [MaxBuckets / 8]byte
	for i, w := range s.words {
		binary.LittleEndian.PutUint64(all[i*8:], w)
	}
	return append(dst, all[:(n+7)/8]...)
}

// ParseBits is the inverse of AppendBits. It refuses a bitmap of any other
// length and one with a bucket from n on.
func ParseBits(src []byte, n int) (Set, error) {
	var s Set
	if n < 0 || n > MaxBuckets || len(src) != (n+7)/8 {
		return s, fmt.Errorf("partition: bitmap of %d bytes for %d buckets", len(src), n)
	}
	var all [MaxBuckets / 8]byte
	copy(all[:], src)
	for i := range s.words {
		s.words[i] = binary.LittleEndian.Uint64(all[i*8:])
	}
	if !FullSet(n).Contains(s) {
		return Set{}, fmt.Errorf("partition: bitmap holds a bucket beyond the last, %d", n-1)
	}
	return s, nil
}

// String returns the buckets as ranges: "0-17,20".
func (s Set) String() string {
	var b strings.Builder
	first, last := -1, -1
	flush := func() {
		if first < 0 {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(first))
		if last > first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(last))
		}
	}
	for k := range s.All() {
		if first >= 0 && k == last+1 {
			last = k
			continue
		}
		flush()
		first, last = k, k
	}
	flush()
	return b.String()
}
