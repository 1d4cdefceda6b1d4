package partition

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

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
