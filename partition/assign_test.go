package partition

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var drawMembers = rapid.Custom(func(t *rapid.T) []Member {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-h][0-9]{1,2}`), 1, 128, rapid.ID).Draw(t, "names")
	var members []Member
	for _, n := range names {
		members = append(members, Member{n, rapid.IntRange(1, MaxWeight).Draw(t, "weight")})
	}
	return members
})

var drawBuckets = rapid.Custom(func(t *rapid.T) int {
	return 1 << rapid.IntRange(0, 12).Draw(t, "log2 buckets")
})

func counts(owners []string) map[string]int {
	n := make(map[string]int)
	for _, o := range owners {
		n[o]++
	}
	return n
}

// moved counts the buckets that a living member lost.
func moved(prev, owners []string, members []Member) int {
	n := 0
	for b, o := range prev {
		alive := slices.ContainsFunc(members, func(m Member) bool { return m.Name == o })
		if alive && owners[b] != o {
			n++
		}
	}
	return n
}

func TestAssign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		buckets := drawBuckets.Draw(t, "buckets")
		prev := Assign(nil, drawMembers.Draw(t, "before"), buckets)
		if rapid.Bool().Draw(t, "any owners") {
			names := rapid.SampledFrom([]string{"", "a1", "b2", "c3", "gone"})
			for b := range min(buckets, 64) {
				prev[b] = names.Draw(t, "owner")
			}
		}
		members := drawMembers.Draw(t, "members")
		given := slices.Clone(prev)
		owners := Assign(prev, members, buckets)

		if !slices.Equal(prev, given) {
			t.Fatal("changed its argument")
		}
		total := 0
		for _, m := range members {
			total += m.Weight
		}
		have, least, spare, up := counts(owners), 0, buckets, 0
		held := counts(prev)
		for _, m := range members {
			exact := float64(buckets) * float64(m.Weight) / float64(total)
			if d := float64(have[m.Name]) - exact; d <= -1 || d >= 1 {
				t.Fatalf("%s has %d of %d buckets, exactly %.2f", m.Name, have[m.Name], buckets, exact)
			}
			floor := buckets * m.Weight / total
			spare -= floor
			if over := held[m.Name] - floor; over > 0 {
				least += over
				if buckets*m.Weight%total != 0 {
					up++
				}
			}
			delete(have, m.Name)
		}
		if len(have) != 0 {
			t.Fatalf("owners that are no members: %v", have)
		}
		// A member that holds more than its share rounded down keeps one more
		// if there is one to spare.
		least -= min(spare, up)
		if got := moved(prev, owners, members); got != least {
			t.Fatalf("moved %d buckets, %d would do", got, least)
		}
		if again := Assign(owners, members, buckets); !slices.Equal(again, owners) {
			t.Fatal("not stable")
		}
		slices.Reverse(members)
		if again := Assign(prev, members, buckets); !slices.Equal(again, owners) {
			t.Fatal("depends on the order of the members")
		}
	})
}

func TestAssignNobody(t *testing.T) {
	for _, o := range Assign([]string{"a", "b"}, nil, 2) {
		if o != "" {
			t.Errorf("owner %q without members", o)
		}
	}
}

// A director that goes and returns finds the others' buckets where they were.
func TestAssignFailover(t *testing.T) {
	three := []Member{{"d1", 100}, {"d2", 100}, {"d3", 100}}
	before := Assign(nil, three, 256)
	during := Assign(before, three[:2], 256)
	if n := moved(before, during, three[:2]); n != 0 {
		t.Errorf("a failover took %d buckets from survivors", n)
	}
	after := Assign(during, three, 256)
	if n := moved(during, after, three); n != counts(after)["d3"] {
		t.Errorf("a return of %d buckets moved %d", counts(after)["d3"], n)
	}
}

func FuzzAssign(f *testing.F) {
	f.Add("a b c", "a:1 b:2 c:1000", uint8(8))
	f.Add("", "x:0 y:-4", uint8(0))
	f.Fuzz(func(t *testing.T, prev, members string, log uint8) {
		var ms []Member
		for i, field := range strings.Fields(members) {
			name, w, _ := strings.Cut(field, ":")
			var weight int
			fmt.Sscan(w, &weight)
			ms = append(ms, Member{fmt.Sprint(name, i), weight})
		}
		buckets := 1 << (log % 13)
		owners := Assign(strings.Fields(prev), ms, buckets)
		if len(owners) != buckets {
			t.Fatalf("%d owners for %d buckets", len(owners), buckets)
		}
		for b, o := range owners {
			if (o == "") != (len(ms) == 0) {
				t.Fatalf("bucket %d has owner %q", b, o)
			}
		}
	})
}

func BenchmarkAssign(b *testing.B) {
	var members []Member
	for i := range 128 {
		members = append(members, Member{fmt.Sprintf("director-%03d", i), 1 + i*7})
	}
	prev := Assign(nil, members[:100], MaxBuckets)
	b.ReportAllocs()
	for b.Loop() {
		Assign(prev, members, MaxBuckets)
	}
}
