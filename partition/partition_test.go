package partition

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var drawMembers = rapid.Custom(func(t *rapid.T) []Member {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-h][0-9]`), 1, 16, rapid.ID).Draw(t, "names")
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

func TestSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawBuckets.Draw(t, "buckets")
		draw := func(name string) (Set, map[int]bool) {
			m := make(map[int]bool)
			for _, b := range rapid.SliceOf(rapid.IntRange(0, n-1)).Draw(t, name) {
				m[b] = true
			}
			var s Set
			for b := range m {
				s.Add(b)
			}
			return s, m
		}
		a, am := draw("a")
		c, cm := draw("c")
		if a.Len() != len(am) || len(slices.Collect(a.All())) != len(am) || a.Empty() != (len(am) == 0) {
			t.Fatalf("%v has %d buckets, want %d", a, a.Len(), len(am))
		}
		if !slices.IsSorted(slices.Collect(a.All())) {
			t.Fatal("not in order")
		}
		u, m, i := a.Union(c), a.Minus(c), a.Intersect(c)
		for b := -1; b <= n; b++ {
			if a.Has(b) != am[b] || u.Has(b) != (am[b] || cm[b]) || m.Has(b) != (am[b] && !cm[b]) || i.Has(b) != (am[b] && cm[b]) {
				t.Fatalf("bucket %d", b)
			}
		}
		if !u.Contains(a) || !m.Union(i).Equal(a) {
			t.Fatal("union, difference and intersection do not fit together")
		}
		back, err := ParseBits(a.AppendBits(nil, n), n)
		if err != nil || back != a {
			t.Fatalf("bits: %v, %v", back, err)
		}
		for b := range a.All() {
			a.Remove(b)
		}
		if !a.Empty() {
			t.Fatal("not empty after all were removed")
		}
	})
}

func TestSetText(t *testing.T) {
	for want, s := range map[string]Set{
		"":               {},
		"0":              SetOf(0),
		"0-2,5,7-8,4095": SetOf(0, 1, 2, 5, 7, 8, 4095),
		"0-255":          FullSet(256),
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := SetOf(0, 9).AppendBits(nil, 12); string(got) != "\x01\x02" {
		t.Errorf("bitmap % x", got)
	}
}

func FuzzParseBits(f *testing.F) {
	f.Add([]byte{1, 2}, 12)
	f.Add([]byte{1, 0x20}, 12)
	f.Fuzz(func(t *testing.T, src []byte, n int) {
		s, err := ParseBits(src, n)
		if err == nil && string(s.AppendBits(nil, n)) != string(src) {
			t.Fatalf("% x came back as % x", src, s.AppendBits(nil, n))
		}
	})
}

func TestSense(t *testing.T) {
	for text, want := range map[string]Sense{
		"src-port":                            SrcPort,
		"dst-port, src-addr":                  SrcAddr | DstPort,
		"src-addr,dst-addr,src-port,dst-port": SrcAddr | DstAddr | SrcPort | DstPort,
	} {
		got, err := ParseSense(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if back, err := ParseSense(got.String()); err != nil || back != got {
			t.Errorf("%q came back as %v, %v", got, back, err)
		}
	}
	for _, bad := range []string{"", "port", "src-port,", "src-port;dst-port"} {
		if _, err := ParseSense(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if m := (SrcAddr | DstPort).Mirror(); m != DstAddr|SrcPort {
		t.Errorf("mirrored to %v", m)
	}
}

// The mirrored sense puts both directions of a flow into one bucket, where
// one field decides.
func TestMirrorBucket(t *testing.T) {
	client, server := netip.MustParseAddrPort("192.0.2.7:40001"), netip.MustParseAddrPort("198.51.100.1:80")
	for _, s := range []Sense{SrcAddr, DstAddr, SrcPort, DstPort} {
		there := Hash{s, 7, 256}.Bucket(client, server)
		if back := (Hash{s.Mirror(), 7, 256}).Bucket(server, client); back != there {
			t.Errorf("%v: %d there, %d back", s, there, back)
		}
	}
}

// Values of lookup3's hashlittle for these keys and seeds, from Bob Jenkins'
// own driver; jhash is the same function with the length added to the seed.
func TestJhash(t *testing.T) {
	for _, c := range []struct {
		key  string
		seed uint32
		want uint32
	}{
		{"", 0, 0xdeadbeef},
		{"", 0xdeadbeef, 0xbd5b7dde},
		{"Four score and seven years ago", 0, 0x17770551},
		{"Four score and seven years ago", 1, 0xcd628161},
	} {
		if got := jhash([]byte(c.key), c.seed); got != c.want {
			t.Errorf("jhash(%q, %#x) = %#x, want %#x", c.key, c.seed, got, c.want)
		}
	}
}

func TestBucketSpread(t *testing.T) {
	h := Hash{SrcPort, rand.Uint32(), 256}
	var seen Set
	for p := range 1 << 16 {
		src := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(p))
		b := h.Bucket(src, src)
		if b < 0 || b >= h.Buckets {
			t.Fatalf("bucket %d", b)
		}
		seen.Add(b)
	}
	if seen.Len() != 256 {
		t.Errorf("all ports fall into %d buckets", seen.Len())
	}
}

func BenchmarkBucket(b *testing.B) {
	h := Hash{SrcAddr | DstAddr | SrcPort | DstPort, 1, 256}
	src, dst := netip.MustParseAddrPort("[2001:db8::1]:40001"), netip.MustParseAddrPort("[2001:db8::2]:80")
	b.ReportAllocs()
	for b.Loop() {
		h.Bucket(src, dst)
	}
}
