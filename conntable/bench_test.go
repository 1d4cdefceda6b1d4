package conntable

import (
	"syscall"
	"testing"
	"time"
)

const million = 1 << 20

// A filled table is shared by benchmarks that leave it as large as it is.
var filled struct {
	tab   *Table
	clock *Clock
}

func fill(b *testing.B) (*Table, *Clock) {
	if filled.tab == nil {
		filled.tab, filled.clock = New(2*million), NewClock(1)
		filled.tab.RefuseLate(filled.clock, time.Hour)
		for i := range million {
			r := sample(i)
			r.Version = filled.clock.Next()
			filled.tab.Apply(&r, 0)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	return filled.tab, filled.clock
}

// scatter walks over all numbers below a million in no order.
func scatter(i int) int { return i * 7919 % million }

// cpu reports the processor's time for each of n things, which a machine that
// others use does not blur as it does the time that passes.
func cpu(b *testing.B, n int, body func()) {
	before := cpuTime(b)
	body()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(n), "cpu-ns/entry")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkInsert(b *testing.B) {
	clock := NewClock(1)
	b.ReportAllocs()
	for b.Loop() {
		tab := New(million)
		cpu(b, million, func() {
			for i := range million {
				r := sample(i)
				r.Version = clock.Next()
				tab.Apply(&r, 0)
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, c := range []struct {
		name  string
		state uint16
	}{{"refresh", 1}, {"state", 5}} {
		b.Run(c.name, func(b *testing.B) {
			tab, clock := fill(b)
			cpu(b, b.N, func() {
				for i := range b.N {
					r := sample(scatter(i))
					r.Version, r.State = clock.Next(), c.state+uint16(i&1)*(c.state-1)
					if tab.Apply(&r, 0).Outcome != Updated {
						b.Fatal("not updated")
					}
				}
			})
		})
	}
}

func BenchmarkUpdateAndTake(b *testing.B) {
	tab, clock := fill(b)
	var out Record
	cpu(b, b.N, func() {
		for i := range b.N {
			r := sample(scatter(i))
			r.Version = clock.Next()
			if !tab.Take(tab.Apply(&r, ToPeers).Ref, ToPeers, &out) {
				b.Fatal("not taken")
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	tab, _ := fill(b)
	var out Record
	cpu(b, b.N, func() {
		for i := range b.N {
			r := sample(scatter(i))
			if !tab.Lookup(r.Key, &out) {
				b.Fatal("not there")
			}
		}
	})
}

func BenchmarkStale(b *testing.B) {
	tab, _ := fill(b)
	cpu(b, b.N, func() {
		for i := range b.N {
			r := sample(scatter(i))
			r.Version = Version{LiveClock, 1}
			if tab.Apply(&r, 0).Outcome != Stale {
				b.Fatal("not stale")
			}
		}
	})
}

// BenchmarkDelete makes a tombstone and brings the connection back.
func BenchmarkDelete(b *testing.B) {
	tab, clock := fill(b)
	cpu(b, b.N, func() {
		for i := range b.N {
			r := sample(scatter(i))
			if tab.Delete(r.Key, clock.Next(), 0).Outcome != Updated {
				b.Fatal("not deleted")
			}
			r.Version = clock.Next()
			tab.Apply(&r, 0)
		}
	})
}

// BenchmarkExpire puts entries in and lets them die, in a table that has held
// as many before.
func BenchmarkExpire(b *testing.B) {
	tab, clock := New(million), NewClock(1)
	round := func() {
		for i := range million {
			r := sample(i)
			r.Version = clock.Next()
			tab.Apply(&r, 0)
		}
		tab.start = tab.start.Add(-1000 * time.Second) // time passes
	}
	round()
	tab.Expire()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		round()
		b.StartTimer()
		cpu(b, million, func() {
			if n := tab.Expire(); n != million {
				b.Fatalf("%d expired", n)
			}
		})
	}
}

func BenchmarkWalk(b *testing.B) {
	tab, _ := fill(b)
	recs := make([]Record, 256)
	n := 0
	cpu(b, b.N*million, func() {
		for range b.N {
			var c Cursor
			for m := tab.Walk(&c, nil, recs); m > 0; m = tab.Walk(&c, nil, recs) {
				n += m
			}
		}
	})
	if n != b.N*million {
		b.Fatalf("%d told", n)
	}
}

func BenchmarkWalkSlice(b *testing.B) {
	tab, _ := fill(b)
	recs := make([]Record, 256)
	for i := range b.N {
		var in Slices
		in.Add(i % SliceCount)
		var c Cursor
		for tab.Walk(&c, &in, recs) > 0 {
		}
	}
}

// BenchmarkDigests asks for the digests of a million entries once a tick, of
// which some change between.
func BenchmarkDigests(b *testing.B) {
	tab, clock := fill(b)
	var d Digests
	base := clock.Now() + HorizonTick
	for i := range b.N {
		b.StopTimer()
		now := base + uint64(i)*HorizonTick
		clock.Observe(now + 1000)
		for j := range 1000 {
			r := sample(scatter(i*1000 + j))
			r.Version = Version{now + uint64(j), 1}
			if tab.Apply(&r, 0).Outcome != Updated {
				b.Fatal("not updated")
			}
		}
		b.StartTimer()
		if !tab.Digests(now-2*HorizonTick, &d) {
			b.Fatal("too late")
		}
	}
}
