package forward

import (
	"testing"

	"pgregory.net/rapid"

	"saru/partition"
	"saru/partition/nft"
)

var m2, m3 = nft.MAC{2, 2}, nft.MAC{2, 3}

func TestRoutesOf(t *testing.T) {
	b := partition.SetOf
	for _, c := range []struct {
		name       string
		open, rest partition.Set
		others     []Director
		toOpen     map[int]nft.MAC
		toRest     map[int]nft.MAC
		held       partition.Set
	}{
		{"all is ours", b(1, 2), b(1, 2), nil, nil, nil, b(1, 2)},
		{
			"each its own", b(1), b(1),
			[]Director{{m2, b(2), b(2)}, {m3, b(3), b(3)}},
			map[int]nft.MAC{2: m2, 3: m3},
			map[int]nft.MAC{2: m2, 3: m3},
			b(1),
		},
		{
			"another readies itself for ours", b(1), b(1),
			[]Director{{m2, b(), b(1)}},
			nil, nil, b(1),
		},
		{
			"ours is released, nobody opens", b(), b(1),
			[]Director{{m2, b(), b(1)}},
			nil, nil, b(1),
		},
		{
			"ours has gone, we linger", b(), b(1),
			[]Director{{m2, b(1), b(1)}},
			map[int]nft.MAC{1: m2},
			map[int]nft.MAC{1: m2},
			b(1),
		},
		{
			"between two others, nobody opens", b(), b(),
			[]Director{{m3, b(), b(1)}, {m2, b(), b(1)}},
			nil,
			map[int]nft.MAC{1: m2},
			b(),
		},
		{
			"between two others, one opens", b(), b(),
			[]Director{{m2, b(), b(1)}, {m3, b(1), b(1)}},
			map[int]nft.MAC{1: m3},
			map[int]nft.MAC{1: m3},
			b(),
		},
	} {
		r := RoutesOf(c.open, c.rest, c.others)
		if !same(r.Open, c.toOpen) || !same(r.Rest, c.toRest) || r.Held != c.held || len(r.All) != len(c.others) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func same(a, b map[int]nft.MAC) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// Whatever directors say, nothing goes to one that does not say it serves it,
// and nothing that is opened here goes away.
func TestRoutesLeadToServers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := func(what string) (s partition.Set) {
			for _, b := range rapid.SliceOfN(rapid.IntRange(0, 31), 0, 40).Draw(t, what) {
				s.Add(b)
			}
			return s
		}
		open := set("open")
		rest := open.Union(set("rest"))
		var others []Director
		by := map[nft.MAC]Director{}
		for i := range rapid.IntRange(0, 40).Draw(t, "others") {
			o := Director{MAC: nft.MAC{2, byte(i)}, Open: set("open")}
			o.Rest = o.Open.Union(set("rest"))
			others, by[o.MAC] = append(others, o), o
		}
		r := RoutesOf(open, rest, others)
		for b, mac := range r.Open {
			if o := by[mac]; !o.Open.Has(b) || open.Has(b) {
				t.Errorf("what opens bucket %d goes to %v", b, mac)
			}
		}
		for b, mac := range r.Rest {
			if o := by[mac]; !o.Rest.Has(b) || open.Has(b) {
				t.Errorf("rest of bucket %d goes to %v", b, mac)
			}
		}
		if len(r.All) > nft.MaxPeers || r.Held != rest {
			t.Errorf("%d peers, held %v", len(r.All), r.Held)
		}
	})
}
