package conntable

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func testKey(i int) Key {
	return Key{
		Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 40000),
		Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: 6,
	}
}

func record(i int, v Version, state uint16, rest time.Duration) *Record {
	c := Connection{Key: testKey(i), Dest: netip.MustParseAddrPort("10.0.0.1:80"), State: state, Timeout: rest}
	return &Record{Connection: c, Version: v, Remaining: rest}
}

// contents is all that the table holds, by key, without what time does to it.
func contents(t *Table) map[Key]Record {
	m := map[Key]Record{}
	t.Each(func(r *Record) bool {
		c := *r
		c.Remaining = 0
		m[r.Key] = c
		return true
	})
	return m
}

func equal(a, b map[Key]Record) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d and %d entries", len(a), len(b))
	}
	for k, x := range a {
		if y := b[k]; x.Version != y.Version || x.State != y.State || x.Deleted != y.Deleted {
			return fmt.Errorf("%v: %+v and %+v", k, x, y)
		}
	}
	return nil
}

// drawRecords draws records of few keys and versions. Like in life, one
// version stands for one content.
func drawRecords(t *rapid.T) []*Record {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *Record {
		clock := LiveClock + uint64(rapid.IntRange(1, 6).Draw(t, "clock"))*HorizonTick/2
		v := Version{clock, NodeID(rapid.IntRange(1, 3).Draw(t, "node"))}
		r := record(rapid.IntRange(0, 3).Draw(t, "key"), v, uint16(v.Clock/HorizonTick*10+uint64(v.Node)), time.Hour)
		r.Deleted = (v.Clock/HorizonTick+uint64(v.Node))%3 == 0
		return r
	}), 0, 30).Draw(t, "records")
}

func TestMergeHasNoOrderAndNoMemoryOfRepetition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		recs := drawRecords(t)
		order := rapid.Permutation(recs).Draw(t, "order")
		a, b, newest := New(100), New(100), map[Key]*Record{}
		for _, r := range recs {
			a.Apply(r, 0)
			if n := newest[r.Key]; n == nil || r.Version.Compare(n.Version) > 0 {
				newest[r.Key] = r
			}
		}
		for i, r := range order {
			b.Apply(r, 0)
			b.Apply(order[i/2], 0) // again
		}
		if err := equal(contents(a), contents(b)); err != nil {
			t.Fatalf("two orders: %v", err)
		}
		// Merging tables is merging their records: (a then b) then c = a then (b then c).
		c := New(100)
		for _, n := range newest {
			c.Apply(n, 0)
		}
		if err := equal(contents(a), contents(c)); err != nil {
			t.Fatalf("not the newest of each: %v", err)
		}
		tombs := 0
		for _, n := range newest {
			if n.Deleted {
				tombs++
			}
		}
		if a.Tombstones() != tombs || a.Len() != len(newest)-tombs {
			t.Fatalf("%d connections and %d tombstones, want %d and %d", a.Len(), a.Tombstones(), len(newest)-tombs, tombs)
		}
		if digests(t, a, LiveClock+10*HorizonTick) != digests(t, b, LiveClock+10*HorizonTick) {
			t.Fatal("digests differ")
		}
	})
}

func digests(t interface{ Fatal(...any) }, tab *Table, horizon uint64) (d Digests) {
	if !tab.Digests(horizon, &d) {
		t.Fatal("too late for the horizon")
	}
	return d
}

func TestOlderNeverOverwritesNewer(t *testing.T) {
	tab := New(10)
	v := Version{LiveClock + 5, 2}
	tab.Apply(record(1, v, 1, time.Hour), 0)
	for _, c := range []struct {
		v    Version
		want Outcome
	}{
		{Version{v.Clock - 1, 9}, Stale},
		{Version{v.Clock, 1}, Stale},
		{v, Same},
		{Version{v.Clock, 3}, Updated},
		{Version{v.Clock + 1, 1}, Updated},
	} {
		res := tab.Apply(record(1, c.v, 9, time.Hour), ToKernel)
		if res.Outcome != c.want || (res.Queued != 0) != (c.want == Updated && c.v.Node == 3) {
			t.Errorf("%+v over %+v: %v, queued %d; want %v", c.v, v, res.Outcome, res.Queued, c.want)
		}
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(10)
		if got := tab.Apply(record(1, Version{1, 1}, 1, 0), 0).Outcome; got != Late {
			t.Errorf("a record past its deadline: %v", got)
		}
		tab.Apply(record(1, Version{1, 1}, 1, 10*time.Second), 0)
		tab.Apply(record(2, Version{1, 1}, 1, 5000*time.Second), 0) // more than a turn of the wheel
		tab.Apply(record(3, Version{1, 1}, 1, 900*time.Second), 0)
		tab.Apply(record(3, Version{2, 1}, 4, 5*time.Second), 0) // closes: dies sooner
		tab.Apply(record(4, Version{1, 1}, 1, 5*time.Second), 0)
		tab.Apply(record(4, Version{2, 1}, 1, 900*time.Second), 0) // talks: lives longer
		for _, step := range []struct{ after, left int }{{4, 4}, {6, 3}, {11, 2}, {899, 2}, {902, 1}, {4999, 1}, {5001, 0}} {
			for time.Since(tab.start) < time.Duration(step.after)*time.Second {
				time.Sleep(time.Second)
				tab.Expire()
			}
			if tab.Len() != step.left {
				t.Errorf("after %d s: %d connections, want %d", step.after, tab.Len(), step.left)
			}
		}
	})
}

func TestDeadlinesWithoutRegularExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(1000)
		for i := range 1000 {
			tab.Apply(record(i, Version{1, 1}, 1, time.Duration(i+1)*7*time.Second), 0)
		}
		var r Record
		time.Sleep(7 * time.Second)
		if tab.Lookup(testKey(0), &r) {
			t.Error("an entry is told after its deadline")
		}
		time.Sleep(2 * time.Hour) // stopped, say
		if n := tab.Expire(); n != 1000 || tab.Len() != 0 {
			t.Errorf("expired %d, left %d", n, tab.Len())
		}
	})
}

// Who deletes what he looked at does not delete what came since, and does not
// miss what only lives longer.
func TestDeleteIf(t *testing.T) {
	for what, x := range map[string]struct {
		since func(tab *Table)
		want  Outcome
	}{
		"nothing":       {func(*Table) {}, Updated},
		"a longer life": {func(tab *Table) { tab.Extend(testKey(1), 200*time.Second) }, Updated},
		"news":          {func(tab *Table) { tab.Apply(record(1, Version{2, 2}, 1, 100*time.Second), 0) }, Late},
		"a deletion":    {func(tab *Table) { tab.Delete(testKey(1), Version{2, 2}, 0) }, Late},
	} {
		tab := New(10)
		tab.Apply(record(1, Version{1, 1}, 1, 100*time.Second), 0)
		var seen, r Record
		tab.Lookup(testKey(1), &seen)
		x.since(tab)
		got := tab.DeleteIf(&seen, Version{3, 1}, ToPeers)
		if found := tab.Lookup(testKey(1), &r); !found || got.Outcome != x.want || (r.Version == Version{3, 1}) != (x.want == Updated) {
			t.Errorf("after %s: %v, %+v; want %v", what, got.Outcome, r, x.want)
		}
	}
	if got := New(10).DeleteIf(record(1, Version{1, 1}, 1, time.Second), Version{3, 1}, 0); got.Outcome != Late {
		t.Errorf("of what is not there: %v", got.Outcome)
	}
}

// What an entry held does not come over what came since, even under the same
// version.
func TestRetell(t *testing.T) {
	for what, x := range map[string]struct {
		since func(tab *Table)
		want  Outcome
	}{
		"nothing":          {func(*Table) {}, Updated},
		"a longer life":    {func(tab *Table) { tab.Extend(testKey(1), 200*time.Second) }, Updated},
		"news":             {func(tab *Table) { tab.Apply(record(1, Version{LiveClock + 2, 2}, 1, 100*time.Second), 0) }, Stale},
		"news not yet due": {func(tab *Table) { tab.Apply(record(1, Version{LiveClock + 1, 1}, 4, 100*time.Second), ToPeers) }, Stale},
		"a deletion":       {func(tab *Table) { tab.Delete(testKey(1), Version{LiveClock + 2, 2}, 0) }, Stale},
	} {
		tab := New(10)
		tab.Apply(record(1, Version{LiveClock + 1, 1}, 1, 100*time.Second), ToPeers)
		x.since(tab)
		got := tab.Retell(Version{LiveClock + 1, 1}, record(1, Version{LiveClock + 3, 1}, 1, 100*time.Second), 0)
		var r Record
		if found := tab.Lookup(testKey(1), &r); !found || got.Outcome != x.want || (r.Version == Version{LiveClock + 3, 1}) != (x.want == Updated) {
			t.Errorf("after %s: %v, %+v; want %v", what, got.Outcome, r, x.want)
		}
	}
	if got := New(10).Retell(Version{LiveClock + 1, 1}, record(1, Version{LiveClock + 3, 1}, 1, time.Second), 0); got.Outcome != Stale {
		t.Errorf("of what is not there: %v", got.Outcome)
	}
}

func TestTombstoneOutlivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(10)
		old := record(1, Version{1, 1}, 1, 100*time.Second)
		tab.Apply(old, 0)
		time.Sleep(1500 * time.Millisecond)
		tab.Delete(testKey(1), Version{2, 1}, 0)
		var r Record
		if !tab.Lookup(testKey(1), &r) || !r.Deleted || r.Timeout != 99*time.Second {
			t.Errorf("after the deletion: %+v", r)
		}
		if got := tab.Delete(testKey(1), Version{3, 1}, 0).Outcome; got != Late {
			t.Errorf("deleted twice: %v", got)
		}
		if got := tab.Apply(old, 0).Outcome; got != Stale {
			t.Errorf("what was deleted came back: %v", got)
		}
		time.Sleep(100 * time.Second)
		tab.Expire()
		if tab.Tombstones() != 0 {
			t.Error("the tombstone outlived the entry's deadline")
		}
	})
}

func TestExtend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, clock := New(10), NewClock(1)
		v := clock.Next()
		tab.Apply(record(1, v, 1, 100*time.Second), 0)
		h := v.Clock + 2*HorizonTick
		before := digests(t, tab, h)
		time.Sleep(50 * time.Second)
		if !tab.Extend(testKey(1), 100*time.Second) || !tab.Extend(testKey(1), time.Second) {
			t.Error("a living connection was not extended")
		}
		var r Record
		if !tab.Lookup(testKey(1), &r) || r.Remaining != 100*time.Second || r.Version != v {
			t.Errorf("extended to 100 s: %+v", r)
		}
		if digests(t, tab, h) != before {
			t.Error("the digests changed")
		}
		time.Sleep(99 * time.Second)
		if tab.Expire() != 0 {
			t.Error("it died before its new deadline")
		}
		time.Sleep(time.Second)
		if tab.Extend(testKey(1), time.Hour) || tab.Expire() != 1 {
			t.Error("it outlived its new deadline")
		}
		tab.Apply(record(1, clock.Next(), 1, 100*time.Second), 0)
		tab.Delete(testKey(1), clock.Next(), 0)
		if tab.Extend(testKey(1), time.Hour) {
			t.Error("a tombstone was extended")
		}
	})
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(3)
		for i := range 3 {
			tab.Apply(record(i, Version{1, 1}, 1, time.Minute), 0)
		}
		if got := tab.Apply(record(3, Version{1, 1}, 1, time.Minute), 0).Outcome; got != Full {
			t.Errorf("a fourth of three: %v", got)
		}
		if got := tab.Apply(record(2, Version{2, 1}, 1, time.Hour), 0).Outcome; got != Updated {
			t.Errorf("a known one: %v", got)
		}
		time.Sleep(2 * time.Minute)
		tab.Expire()
		if got := tab.Apply(record(3, Version{1, 1}, 1, time.Minute), 0).Outcome; got != Added {
			t.Errorf("after expiry: %v", got)
		}
	})
}

// sameShard returns n keys' numbers whose entries compete for room.
func sameShard(n int) []int {
	var nums []int
	for i := 0; len(nums) < n; i++ {
		if k := testKey(i); SliceOf(&k)%shardCount == 0 {
			nums = append(nums, i)
		}
	}
	return nums
}

func TestAFullTableShedsWhatWouldDieFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(3)
		k := sameShard(5)
		tab.Apply(record(k[0], Version{1, 1}, 1, 900*time.Second), 0)
		gone := record(k[1], Version{1, 1}, 1, 20*time.Second)
		gone.Deleted = true
		tab.Apply(gone, 0)
		tab.Apply(record(k[2], Version{1, 1}, 1, 10*time.Second), 0)
		tab.Apply(record(k[2], Version{2, 1}, 1, 900*time.Second), 0) // refreshed
		for _, step := range []struct {
			key  int
			rest time.Duration
			want Outcome
			left []int
		}{
			{k[3], 15 * time.Second, Full, []int{k[0], k[1], k[2]}},
			{k[3], 60 * time.Second, Added, []int{k[0], k[2], k[3]}},
			{k[4], 900 * time.Second, Added, []int{k[0], k[2], k[4]}},
			{k[1], 900 * time.Second, Full, []int{k[0], k[2], k[4]}},
		} {
			if got := tab.Apply(record(step.key, Version{1, 1}, 1, step.rest), 0).Outcome; got != step.want {
				t.Errorf("one that lives %v: %v, want %v", step.rest, got, step.want)
			}
			is := contents(tab)
			for _, i := range step.left {
				if _, ok := is[testKey(i)]; !ok || len(is) != len(step.left) {
					t.Errorf("after one that lives %v: %v", step.rest, is)
				}
			}
		}
		if tab.Shed() != 2 || tab.Tombstones() != 0 || tab.Len() != 3 {
			t.Errorf("%d shed, %d connections, %d tombstones; want 2, 3 and 0", tab.Shed(), tab.Len(), tab.Tombstones())
		}
	})
}

func TestWhatNobodyWasToldKeepsItsVersion(t *testing.T) {
	const first, second = 1<<50 - 10, 1<<50 + 10 // in different ticks
	for _, c := range []struct {
		name    string
		between func(tab *Table, ref Ref)
		next    Version
		want    uint64
	}{
		{"still waiting", func(*Table, Ref) {}, Version{second, 1}, first},
		{"taken", func(tab *Table, ref Ref) { tab.Take(ref, ToPeers, &Record{}) }, Version{second, 1}, second},
		{"told in bulk", func(tab *Table, _ Ref) { tab.Each(func(*Record) bool { return true }) }, Version{second, 1}, second},
		{"of another node", func(*Table, Ref) {}, Version{second, 2}, second},
		{"in the same tick", func(*Table, Ref) {}, Version{first + 5, 1}, first + 5},
		{"much later", func(*Table, Ref) {}, Version{first + HorizonTick, 1}, first + HorizonTick},
	} {
		tab := New(10)
		res := tab.Apply(record(1, Version{first, 1}, 1, time.Hour), ToPeers)
		c.between(tab, res.Ref)
		tab.Apply(record(1, c.next, 2, time.Hour), ToPeers)
		var r Record
		if !tab.Lookup(testKey(1), &r) || r.State != 2 || r.Version != (Version{c.want, c.next.Node}) {
			t.Errorf("%s: %+v in state %d, want clock %d in state 2", c.name, r.Version, r.State, uint64(c.want))
		}
	}
}

func TestRefuseLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, clock := New(10), NewClock(1)
		tab.RefuseLate(clock, time.Minute)
		old, found := clock.Next(), FoundVersion(1, time.Hour)
		time.Sleep(959 * time.Second)
		if got := tab.Apply(record(1, old, 1, 900*time.Second), 0).Outcome; got != Added {
			t.Errorf("959 s after: %v", got)
		}
		time.Sleep(2 * time.Second)
		if got := tab.Apply(record(2, old, 1, 900*time.Second), 0).Outcome; got != Late {
			t.Errorf("961 s after: %v", got)
		}
		if got := tab.Apply(record(3, found, 1, 900*time.Second), 0).Outcome; got != Added {
			t.Errorf("a found one has no age: %v", got)
		}
	})
}

func TestQueueHoldsAnEntryOnce(t *testing.T) {
	tab := New(10)
	res := tab.Apply(record(1, Version{1, 1}, 1, time.Hour), ToPeers|ToKernel)
	if res.Queued != ToPeers|ToKernel {
		t.Fatalf("queued %d", res.Queued)
	}
	if again := tab.Apply(record(1, Version{2, 1}, 2, time.Hour), ToPeers); again.Queued != 0 {
		t.Errorf("queued %d a second time", again.Queued)
	}
	var r Record
	if !tab.Take(res.Ref, ToPeers, &r) || r.State != 2 {
		t.Errorf("took %+v, want the newest state", r)
	}
	if tab.Take(res.Ref, ToPeers, &r) {
		t.Error("took it twice")
	}
	if !tab.Take(res.Ref, ToKernel, &r) {
		t.Error("one queue took it off another")
	}
	if _, q := tab.Queue(testKey(1), ToKernel); q != ToKernel {
		t.Errorf("Queue: %d", q)
	}
	if _, q := tab.Queue(testKey(2), ToKernel); q != 0 {
		t.Errorf("Queue of what is not there: %d", q)
	}
}

func TestEachUnderChange(t *testing.T) {
	tab := New(20000)
	for i := range 10000 {
		tab.Apply(record(i, Version{1, 1}, 1, time.Hour), 0)
	}
	seen := map[Key]bool{}
	added := 10000
	tab.Each(func(r *Record) bool {
		seen[r.Key] = true
		if added < 20000 { // yield may use the table
			tab.Apply(record(added, Version{1, 1}, 1, time.Hour), 0)
			added++
		}
		return true
	})
	for i := range 10000 {
		if !seen[testKey(i)] {
			t.Fatalf("entry %d, there from the start, was not told", i)
		}
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock(7)
		a, b := c.Next(), c.Next()
		if b.Compare(a) <= 0 || a.Node != 7 {
			t.Errorf("%+v then %+v", a, b)
		}
		c.Observe(b.Clock + 1e9)
		if d := c.Next(); d.Clock != b.Clock+1e9+1 {
			t.Errorf("after hearing of %d: %d", b.Clock+1e9, d.Clock)
		}
		c.Observe(MaxClock + 1)
		if c.Now() > MaxClock {
			t.Error("an absurd clock was believed")
		}
		ahead := c.Now()
		time.Sleep(2000 * time.Second)
		if d := c.Next(); d.Clock-ahead < 2e9-10 || d.Clock-ahead > 2e9+10 {
			t.Errorf("2000 s after %d: %d", ahead, d.Clock)
		}
		if f := FoundVersion(7, 15*time.Minute); f.Compare(a) >= 0 || f.Compare(FoundVersion(7, time.Minute)) <= 0 {
			t.Errorf("found: %+v", f)
		}
	})
}

func TestNothingAllocates(t *testing.T) {
	const many = 2000
	tab, clock := New(2*many), NewClock(1)
	recs := make([]*Record, many)
	for i := range recs {
		recs[i] = record(i, clock.Next(), 1, 900*time.Second)
		if i%2 == 0 {
			recs[i].Client = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), uint16(i))
		}
		tab.Apply(recs[i], 0)
	}
	var out Record
	var d Digests
	var c Cursor
	buf := make([]Record, 16)
	next := 0
	turn := func() *Record {
		next++
		r := recs[next%many]
		r.Version = clock.Next()
		return r
	}
	for _, op := range []struct {
		name string
		do   func()
	}{
		{"refresh", func() { tab.Apply(turn(), 0) }},
		{"another state and real server", func() {
			r := turn()
			r.State, r.Timeout, r.Dest = r.State^5, 960*time.Second-r.Timeout, netip.AddrPortFrom(r.Dest.Addr(), r.Dest.Port()^1)
			tab.Apply(r, 0)
		}},
		{"news", func() { tab.Take(tab.Apply(turn(), ToPeers).Ref, ToPeers, &out) }},
		{"lookup", func() { tab.Lookup(turn().Key, &out) }},
		{"extension", func() { tab.Extend(turn().Key, time.Hour) }},
		{"deletion", func() { tab.Delete(turn().Key, clock.Next(), 0) }},
		{"walk", func() {
			if tab.Walk(&c, nil, buf) == 0 {
				c = Cursor{}
			}
		}},
		{"digests", func() { tab.Digests(clock.Now(), &d) }},
		{"expiry and insertion", func() {
			tab.start = tab.start.Add(-2 * time.Hour) // time passes
			tab.Expire()
			for range 100 {
				tab.Apply(turn(), 0)
			}
		}},
	} {
		if n := testing.AllocsPerRun(500, op.do); n > 0 {
			t.Errorf("%s: %v allocations", op.name, n)
		}
	}
	if tab.Len()+tab.Tombstones() != 100 {
		t.Errorf("%d connections and %d tombstones, want the last 100", tab.Len(), tab.Tombstones())
	}
}

// What several goroutines tell at once, while others read, expire and digest,
// ends as the newest of each, and with the same digests as when told in order.
func TestConcurrentUse(t *testing.T) {
	const keys, tellings, writers = 300, 2000, 4
	tab, inOrder := New(keys), New(keys)
	newest := map[Key]*Record{}
	recs := make([]*Record, tellings)
	for i := range recs {
		r := record(i*7919%keys, Version{LiveClock + uint64(i), 1}, uint16(i%9), time.Hour)
		r.Deleted = i%11 == 0
		recs[i], newest[r.Key] = r, r
		inOrder.Apply(r, 0)
	}
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		writing.Go(func() {
			for i := w % 2; i < tellings; i += 2 { // each is told twice
				if res := tab.Apply(recs[i], ToPeers); res.Queued != 0 {
					var r Record
					tab.Take(res.Ref, ToPeers, &r)
				}
			}
		})
	}
	for range 2 {
		reading.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					n := 0
					tab.Each(func(*Record) bool { n++; return true })
					if n > keys {
						t.Errorf("%d told of %d", n, keys)
					}
					tab.Expire()
					var d Digests
					tab.Digests(LiveClock, &d)
				}
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	if got := contents(tab); len(got) != len(newest) || equal(got, contents(inOrder)) != nil {
		t.Errorf("%d entries, want %d as told in order: %v", len(got), len(newest), equal(got, contents(inOrder)))
	}
	h := uint64(LiveClock + 2*HorizonTick)
	if digests(t, tab, h) != digests(t, inOrder, h) {
		t.Error("the digests depend on the order")
	}
}

// News that shares a version: what was not told yet is replaced under it, what
// was told, or shown to a walk, is not.
func TestSharedVersion(t *testing.T) {
	clock := NewClock(1)
	v := clock.Shared()
	if w := clock.Shared(); w != v {
		t.Fatalf("shared %v, then %v", v, w)
	}
	clock.Turn()
	if w := clock.Shared(); w.Compare(v) <= 0 {
		t.Fatalf("%v after %v and a turn", w, v)
	}
	for _, c := range []struct {
		name    string
		between func(*Table, Ref)
		want    Outcome
	}{
		{"untold", func(*Table, Ref) {}, Updated},
		{"told", func(tab *Table, ref Ref) { var r Record; tab.Take(ref, ToPeers, &r) }, Same},
		{"shown", func(tab *Table, _ Ref) { tab.Each(func(*Record) bool { return true }) }, Same},
	} {
		tab := New(10)
		r := sample(1)
		r.Version = v
		ref := tab.Apply(&r, ToPeers).Ref
		c.between(tab, ref)
		r.State, r.Timeout = 4, 120*time.Second
		if got := tab.Apply(&r, ToPeers).Outcome; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		var out Record
		if tab.Lookup(r.Key, &out); (out.State == 4) != (c.want == Updated) {
			t.Errorf("%s: state %d", c.name, out.State)
		}
		var d, want Digests
		h := v.Clock&^(HorizonTick-1) + HorizonTick
		tab.Digests(h, &d)
		fresh := New(10)
		fresh.Apply(&out, 0)
		fresh.Digests(h, &want)
		if d != want {
			t.Errorf("%s: digests differ from those of what is there", c.name)
		}
	}
}
