package peer

import "slices"

// maxSpans bounds what one peer's gaps are remembered as; more is a case for
// a pull.
const maxSpans = 256

// A span is the sequence numbers from..to, both in.
type span struct{ from, to uint64 }

// gaps knows which datagrams of one sender are missing. The zero value begins
// with sequence number 0 heard.
type gaps struct {
	next  uint64 // the lowest sequence number above all heard of
	spans []span // missing below next, ascending, not touching
}

// begin makes upto the last one that needs not come.
func (g *gaps) begin(upto uint64) { *g = gaps{next: upto + 1, spans: g.spans[:0]} }

// heard notes that seq came. It reports whether it was wanted (not had
// before), and how many before it are newly known to be missing.
func (g *gaps) heard(seq uint64) (wanted bool, lost uint64) {
	if seq >= g.next {
		lost = g.told(seq - 1)
		g.next = seq + 1
		return true, lost
	}
	i, found := slices.BinarySearchFunc(g.spans, seq, func(s span, seq uint64) int {
		switch {
		case s.to < seq:
			return -1
		case s.from > seq:
			return 1
		}
		return 0
	})
	if !found {
		return false, 0
	}
	s := &g.spans[i]
	switch {
	case s.from == s.to:
		g.spans = slices.Delete(g.spans, i, i+1)
	case seq == s.from:
		s.from++
	case seq == s.to:
		s.to--
	default:
		right := span{seq + 1, s.to}
		s.to = seq - 1
		g.spans = slices.Insert(g.spans, i+1, right)
	}
	return true, 0
}

// told notes that all up to highest were sent, and returns how many of them
// are newly known to be missing.
func (g *gaps) told(highest uint64) uint64 {
	if highest < g.next {
		return 0
	}
	lost := highest - g.next + 1
	g.spans = append(g.spans, span{g.next, highest})
	g.next = highest + 1
	return lost
}

// forget takes what is missing up to seq as come by other means, and returns
// how many that were.
func (g *gaps) forget(upto uint64) uint64 {
	var n uint64
	keep := g.spans[:0]
	for _, s := range g.spans {
		if cut := min(s.to, upto); cut >= s.from {
			n += cut - s.from + 1
			s.from = cut + 1
		}
		if s.from <= s.to {
			keep = append(keep, s)
		}
	}
	g.spans = keep
	g.next = max(g.next, upto+1)
	return n
}

// complete reports whether all up to highest came.
func (g *gaps) complete(highest uint64) bool {
	return g.next > highest && (len(g.spans) == 0 || g.spans[0].from > highest)
}

// tooMany reports whether there are more gaps than are worth asking for.
func (g *gaps) tooMany() bool { return len(g.spans) > maxSpans }
