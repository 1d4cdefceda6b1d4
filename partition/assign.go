package partition

import (
	"cmp"
	"slices"
)

// A Member is a director that takes a share.
type Member struct {
	Name   string // unique, not empty
	Weight int    // its part of the whole, 1 to 1000; out of range is clamped
}

// MaxWeight is the largest weight of a Member.
const MaxWeight = 1000

func (m Member) weight() int { return min(max(m.Weight, 1), MaxWeight) }

// Assign returns the owner of each of the buckets by name.
//
// A member's share is its exact proportion buckets*weight/total rounded down
// or up, and among all such divisions it is one that takes the fewest buckets
// away from the owners in prev. So it is stable: its own result, given back
// with the same members, returns unchanged. The order of the members does not
// matter.
//
// prev may be nil, may name members that are gone, and is ignored if it is not
// for this number of buckets. Without members nobody owns anything, and every
// owner is "".
func Assign(prev []string, members []Member, buckets int) []string {
	owners := make([]string, buckets)
	if len(members) == 0 {
		return owners
	}
	if len(prev) != buckets {
		prev = nil
	}
	shares := divide(prev, members, buckets)

	// Everybody keeps what it had, up to its share; what is left over goes to
	// those who lack some, in the order of their names.
	index := make(map[string]*share, len(shares))
	for i := range shares {
		index[shares[i].name] = &shares[i]
	}
	for b, name := range prev {
		if s := index[name]; s != nil && s.want > 0 {
			owners[b] = name
			s.want--
		}
	}
	taker := 0
	for b := range owners {
		if owners[b] != "" {
			continue
		}
		for shares[taker].want == 0 {
			taker++
		}
		owners[b] = shares[taker].name
		shares[taker].want--
	}
	return owners
}

type share struct {
	name  string
	want  int // buckets it is to get
	held  int // buckets it has in prev
	fract int // what rounding down cut off, in units of 1/total weight
}

// divide returns how many buckets each member gets, sorted by name. The
// buckets that rounding down leaves over go, one each, first to those that
// already hold one more than their rounded share, then by the size of what
// was cut off (Hamilton's method). The first criterion saves moves; a member
// whose proportion is a whole number never gets more.
func divide(prev []string, members []Member, buckets int) []share {
	total := 0
	for _, m := range members {
		total += m.weight()
	}
	shares := make([]share, len(members))
	index := make(map[string]*share, len(members))
	left := buckets
	for i, m := range members {
		exact := buckets * m.weight()
		shares[i] = share{name: m.Name, want: exact / total, fract: exact % total}
		index[m.Name] = &shares[i]
		left -= exact / total
	}
	for _, name := range prev {
		if s := index[name]; s != nil {
			s.held++
		}
	}
	slices.SortFunc(shares, func(a, b share) int {
		return cmp.Or(
			-cmp.Compare(rank(a), rank(b)),
			-cmp.Compare(a.fract, b.fract),
			cmp.Compare(a.name, b.name),
		)
	})
	for i := range left {
		shares[i].want++
	}
	slices.SortFunc(shares, func(a, b share) int { return cmp.Compare(a.name, b.name) })
	return shares
}

// rank orders the members for a bucket that rounding left over.
func rank(s share) int {
	switch {
	case s.fract == 0:
		return 0
	case s.held > s.want:
		return 2
	}
	return 1
}
