package conntable

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rankOf is what Ranked's comment says: 0 lasts and was told of lately, 1 lasts.
func rankOf(r *Record, now uint64) int {
	switch {
	case r.Deleted || r.Timeout < lastingAt:
		return 2
	case r.Version.Clock < now-uint64(livelyFor/time.Microsecond):
		return 1
	}
	return 0
}

// A ranked walk tells everything once, what a joiner misses most first, however
// often it is broken off and gone on with from what a stream carries of it.
func TestRankedWalk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		clock := NewClock(1)
		tab := New(1 << 12)
		tab.RefuseLate(clock, 12*time.Hour)
		now := clock.Now()
		n := rapid.IntRange(0, 2000).Draw(rt, "entries")
		for i := range n {
			// Neither age is near a minute, so that the test's own time does not matter.
			age := []time.Duration{time.Second, 10 * time.Minute}[i%2]
			timeout := []time.Duration{10 * time.Second, 15 * time.Minute, time.Hour}[i%3]
			r := record(i, Version{now - uint64(age/time.Microsecond), 2}, uint16(i%5), timeout)
			r.Deleted = i%7 == 0
			if got := tab.Apply(r, 0).Outcome; got != Added {
				rt.Fatalf("entry %d: %v", i, got)
			}
		}
		told := map[Key]bool{}
		last := 0
		c := tab.Ranked()
		for {
			recs := make([]Record, rapid.IntRange(1, 700).Draw(rt, "room"))
			k := tab.Walk(&c, nil, recs)
			if k == 0 {
				break
			}
			for i := range recs[:k] {
				r := &recs[i]
				if told[r.Key] {
					rt.Fatalf("%v is told twice", r.Key)
				}
				told[r.Key] = true
				if rank := rankOf(r, now); rank < last {
					rt.Fatalf("%+v, of rank %d, comes after one of rank %d", r, rank, last)
				} else {
					last = rank
				}
			}
			var ok bool
			if c, ok = ParseCursor(c.AppendTo(nil)); !ok {
				rt.Fatalf("the walk's own cursor is not read")
			}
		}
		if len(told) != n {
			rt.Fatalf("%d of %d are told", len(told), n)
		}
	})
}

// Whatever a puller says that its cursor is, the walk ends and tells nothing
// that is not there.
func FuzzParseCursor(f *testing.F) {
	tab := New(1 << 10)
	clock := NewClock(1)
	tab.RefuseLate(clock, 12*time.Hour)
	for i := range 300 {
		tab.Apply(record(i, clock.Next(), 1, time.Hour), 0)
	}
	c := tab.Ranked()
	f.Add(c.AppendTo(nil))
	tab.Walk(&c, nil, make([]Record, 100))
	f.Add(c.AppendTo(nil))
	f.Add(make([]byte, CursorSize))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x02\x40\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := ParseCursor(b)
		if !ok {
			return
		}
		recs := make([]Record, 64)
		told := 0
		for range ranks * (300/64 + shardCount + 1) {
			n := tab.Walk(&c, nil, recs)
			if n == 0 {
				return
			}
			if told += n; told > 300 {
				t.Fatalf("%d told of 300", told)
			}
		}
		t.Fatal("the walk does not end")
	})
}
