package forward

import (
	"bytes"
	"slices"

	"saru/partition"
	"saru/partition/nft"
)

// A Director is one as this one knows it.
type Director struct {
	MAC  nft.MAC
	Open partition.Set // buckets of which it takes what opens flows
	Rest partition.Set // and of which it takes the rest; holds Open
}

// RoutesOf says where a director hands frames, given what it serves itself and
// what the others say that they serve. Where two say the same of a bucket the
// lower MAC counts, which no lease of theirs allows for long.
//
// The rest of a bucket goes to whoever opens its flows. While nobody does, it
// goes to one who serves the rest. A bucket whose rest is served here and that
// another opens is in motion: both get the rest.
func RoutesOf(open, rest partition.Set, others []Director) nft.Routes {
	others = slices.Clone(others)
	slices.SortFunc(others, func(a, b Director) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	if len(others) > nft.MaxPeers {
		others = others[:nft.MaxPeers]
	}
	r := nft.Routes{Open: map[int]nft.MAC{}, Rest: map[int]nft.MAC{}, Held: open.Union(rest)}
	for i := len(others) - 1; i >= 0; i-- {
		o := &others[i]
		r.All = append([]nft.MAC{o.MAC}, r.All...)
		restElsewhere := o.Rest.Minus(r.Held)
		for b := range restElsewhere.All() {
			r.Rest[b] = o.MAC
		}
	}
	for i := len(others) - 1; i >= 0; i-- {
		opens := others[i].Open.Minus(open)
		for b := range opens.All() {
			r.Open[b], r.Rest[b] = others[i].MAC, others[i].MAC
		}
	}
	return r
}
