package membership

import (
	"math/bits"

	"saru/partition"
)

// Sets of buckets as they go over the wire. A director's share of many buckets
// is scattered after some changes, so runs do not help; the gaps between its
// buckets are about geometrically distributed, which Rice codes (Golomb 1966,
// with a power of two) write within some percent of the entropy. The first byte
// says how:
//
//	0..12      a count (2 bytes), then the gap before each bucket as a Rice code
//	           with this parameter k: the gap shifted right by k as so many ones
//	           and a zero, then its low k bits; high bits first, the last byte
//	           filled up with zeros
//	bitmap     a bit per bucket: bucket b is bit b%8 of byte b/8
//	| relative what follows is not the set but how it differs from the message's
//	           first set
const (
	maxRice  = 12
	bitmap   = 0x0f
	relative = 0x80
)

// rice returns with which parameter the gaps of s are short, and how many bits
// they take then.
func rice(s *partition.Set) (k, count, size int) {
	last := -1
	for b := range s.All() {
		last = b
		count++
	}
	if count == 0 {
		return 0, 0, 0
	}
	k = min(maxRice, max(0, bits.Len(uint((last+1)/count))-1))
	size, last = count*(k+1), -1
	for b := range s.All() {
		size += (b - last - 1) >> k
		last = b
	}
	return k, count, size
}

// setSize returns how many bytes appendSet appends.
func setSize(s *partition.Set, words int) int {
	_, _, size := rice(s)
	return 1 + min(2+(size+7)/8, words*8)
}

// appendSet appends s in the shorter of its ways.
func appendSet(dst []byte, s *partition.Set, words int, flag byte) []byte {
	k, count, size := rice(s)
	if 2+(size+7)/8 >= words*8 {
		return s.AppendBits(append(dst, bitmap|flag), words*64)
	}
	dst = append(dst, byte(k)|flag, byte(count>>8), byte(count))
	var acc uint64 // its low held bits are not written yet
	held, last := 0, -1
	put := func(v uint64, n int) {
		acc = acc<<n | v
		for held += n; held >= 8; held -= 8 {
			dst = append(dst, byte(acc>>(held-8)))
		}
	}
	for b := range s.All() {
		gap := b - last - 1
		last = b
		for range gap >> k {
			put(1, 1)
		}
		put(uint64(gap&(1<<k-1)), k+1) // the zero, and the low bits
	}
	if held > 0 {
		put(0, 8-held)
	}
	return dst
}

// set reads a set; first is the message's first one.
func (r *reader) set(words int, first *partition.Set) (s partition.Set) {
	how := r.u8()
	switch k := how &^ relative; {
	case r.bad:
		return s
	case k == bitmap:
		s, _ = partition.ParseBits(r.take(words*8), words*64) // every bit is a bucket
	case k <= maxRice:
		s = r.rice(words, int(k))
	default:
		r.malformed = true
	}
	if how&relative != 0 {
		s = s.Minus(*first).Union(first.Minus(s))
	}
	return s
}

func (r *reader) rice(words, k int) (s partition.Set) {
	count := int(r.u16())
	b, at := -1, 0
	bit := func() int {
		if at/8 >= len(r.b) {
			r.bad = true
			return 0
		}
		v := r.b[at/8] >> (7 - at%8) & 1
		at++
		return int(v)
	}
	for range count {
		gap, low := 0, 0
		for bit() == 1 {
			if gap++; gap<<k >= words*64 {
				r.malformed = true
				return partition.Set{}
			}
		}
		for range k {
			low = low<<1 | bit()
		}
		if b += 1 + gap<<k + low; r.bad || b >= words*64 {
			r.malformed = true
			return partition.Set{}
		}
		s.Add(b)
	}
	r.b = r.b[(at+7)/8:]
	return s
}

// lowest returns the n lowest buckets of s.
func lowest(s *partition.Set, n int) (l partition.Set) {
	for b := range s.All() {
		if n--; n < 0 {
			break
		}
		l.Add(b)
	}
	return l
}
