package conntable

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// modelKeys are keys of every kind, few enough to meet again.
var modelKeys = func() []Key {
	tcp := func(client, virtual string) Key {
		return Key{Client: netip.MustParseAddrPort(client), Virtual: netip.MustParseAddrPort(virtual), Protocol: 6}
	}
	keys := []Key{
		tcp("10.1.0.1:40000", "10.9.0.100:80"),
		tcp("10.1.0.1:40001", "10.9.0.100:80"),
		tcp("10.1.0.1:40000", "10.9.0.100:443"),
		tcp("10.1.0.1:40000", "10.9.0.101:80"),
		tcp("[::ffff:10.1.0.1]:40000", "10.9.0.100:80"),
		tcp("[2001:db8::1]:40000", "[2001:db8::100]:80"),
		tcp("[2001:db8::2]:40000", "[2001:db8::100]:80"),
		tcp("[::1]:1", "[::]:0"),
		{Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: 17}, // no client at all
		{Client: netip.MustParseAddrPort("10.1.0.0:0"), Virtual: netip.MustParseAddrPort("0.0.0.5:0"), Template: true},
		{Client: netip.MustParseAddrPort("10.1.0.0:0"), Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: 6, Template: true},
	}
	// Most meet in one shard.
	for _, i := range sameShard(12) {
		keys = append(keys, testKey(i))
	}
	for i, n := 0, 0; n < 6; i++ {
		k := tcp("[2001:db8::3]:1", "[2001:db8::100]:80")
		k.Client = netip.AddrPortFrom(k.Client.Addr(), uint16(i))
		if SliceOf(&k)%shardCount == 0 {
			keys = append(keys, k)
			n++
		}
	}
	return keys
}()

func drawConnection(t *rapid.T) Connection {
	c := Connection{
		Key:    rapid.SampledFrom(modelKeys).Draw(t, "key"),
		Dest:   netip.MustParseAddrPort(rapid.SampledFrom([]string{"10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"}).Draw(t, "dest")),
		State:  rapid.SampledFrom([]uint16{0, 1, 5, 65535}).Draw(t, "state"),
		Flags:  rapid.SampledFrom([]uint32{0, FlagFwdGate, 1 << 31}).Draw(t, "flags"),
		FWMark: rapid.SampledFrom([]uint32{0, 5, 1<<32 - 1}).Draw(t, "fwmark"),
	}
	switch rapid.IntRange(0, 5).Draw(t, "extras") {
	case 0:
		c.Dest = netip.AddrPort{}
		c.Seq = &SeqPair{In: Seq{rapid.Uint32().Draw(t, "init"), 2, 3}}
	case 1:
		c.PEName, c.PEData = "sip", []byte(rapid.String().Draw(t, "call id"))
	}
	return c
}

// A model is a table as one would write it first.
type model struct {
	entries map[Key]*modelled
	limit   int
}

type modelled struct {
	rec   Record
	until time.Time
}

func (m *model) expire() int {
	n := 0
	for k, e := range m.entries {
		if !time.Now().Before(e.until) {
			delete(m.entries, k)
			n++
		}
	}
	return n
}

func (m *model) apply(r *Record) Outcome {
	e := m.entries[r.Key]
	switch {
	case e != nil && r.Version == e.rec.Version:
		return Same
	case e != nil && r.Version.Compare(e.rec.Version) < 0:
		return Stale
	case r.Version.Clock > MaxClock:
		return Absurd
	case r.Remaining <= 0:
		return Late
	case e == nil && len(m.entries) >= m.limit:
		return Full
	}
	m.entries[r.Key] = &modelled{*r, time.Now().Add(r.Remaining)}
	if e == nil {
		return Added
	}
	return Updated
}

// same reports how got differs from e, but for the rounding of its deadline.
func (e *modelled) same(got *Record) error {
	want := e.rec
	want.Remaining = time.Until(e.until)
	if d := want.Remaining - got.Remaining; d < 0 || d >= deadlineTick {
		return fmt.Errorf("%v remain, want %v", got.Remaining, want.Remaining)
	}
	want.Remaining = got.Remaining
	if !reflect.DeepEqual(want, *got) {
		return fmt.Errorf("%+v, want %+v", *got, want)
	}
	return nil
}

func (m *model) compare(tab *Table) error {
	seen := map[Key]bool{}
	var err error
	tab.Each(func(r *Record) bool {
		e := m.entries[r.Key]
		switch {
		case e == nil:
			err = fmt.Errorf("%v is there", r.Key)
		case seen[r.Key]:
			err = fmt.Errorf("%v is there twice", r.Key)
		default:
			err = e.same(r)
		}
		seen[r.Key] = true
		return err == nil
	})
	tombs := 0
	for k, e := range m.entries {
		if !seen[k] && err == nil {
			err = fmt.Errorf("%v is missing", k)
		}
		if e.rec.Deleted {
			tombs++
		}
	}
	if err == nil && (tab.Tombstones() != tombs || tab.Len() != len(m.entries)-tombs) {
		err = fmt.Errorf("%d connections and %d tombstones, want %d and %d", tab.Len(), tab.Tombstones(), len(m.entries)-tombs, tombs)
	}
	return err
}

// check checks a property in virtual time. What goes wrong must come out of the
// bubble to be rapid's.
func check(t *testing.T, property func(t *rapid.T) error) {
	rapid.Check(t, func(rt *rapid.T) {
		var err error
		var undrawn any
		synctest.Test(t, func(*testing.T) {
			defer func() { undrawn = recover() }()
			err = property(rt)
		})
		if undrawn != nil {
			panic(undrawn)
		}
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func TestTableIsAMap(t *testing.T) {
	check(t, func(t *rapid.T) error {
		tab, m := New(1000), &model{entries: map[Key]*modelled{}, limit: 1000}
		serial := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			default:
				serial++
				r := Record{Connection: drawConnection(t), Deleted: rapid.IntRange(0, 4).Draw(t, "deleted") == 0}
				r.Timeout = time.Duration(rapid.SampledFrom([]int{0, 1, 10, 120, 900, 3600, 31 * 86400}).Draw(t, "timeout")) * time.Second
				r.Remaining = r.Timeout * time.Duration(rapid.IntRange(0, 4).Draw(t, "quarters")) / 4
				back := rapid.Uint64Range(0, 30).Draw(t, "back") * 1e6
				r.Version = Version{uint64(time.Now().UnixMicro()) - back + serial, NodeID(rapid.IntRange(1, 3).Draw(t, "node"))}
				if rapid.IntRange(0, 20).Draw(t, "absurd") == 0 {
					r.Version.Clock |= 1 << 62
				}
				if got, want := tab.Apply(&r, 0).Outcome, m.apply(&r); got != want {
					return fmt.Errorf("%+v: %v, want %v", r, got, want)
				}
			case 7:
				k := rapid.SampledFrom(modelKeys).Draw(t, "key")
				var r Record
				e := m.entries[k]
				if got := tab.Lookup(k, &r); got != (e != nil) {
					return fmt.Errorf("%v is there: %v, want %v", k, got, !got)
				} else if got {
					if err := e.same(&r); err != nil {
						return err
					}
				}
			case 8:
				time.Sleep(time.Duration(rapid.SampledFrom([]int{1, 10, 120, 900, 5000, 32 * 86400}).Draw(t, "seconds")) * time.Second)
				if got, want := tab.Expire(), m.expire(); got != want {
					return fmt.Errorf("%d expired, want %d", got, want)
				}
			case 9:
				if err := m.compare(tab); err != nil {
					return err
				}
			}
		}
		if err := m.compare(tab); err != nil {
			return err
		}
		time.Sleep(64 * 86400 * time.Second)
		tab.Expire()
		for i := range tab.shards {
			if err := tab.shards[i].isEmpty(); err != nil {
				return err
			}
		}
		return nil
	})
}

// isEmpty checks that nothing is held of entries that are gone.
func (s *shard) isEmpty() error {
	held := s.index.size > 0 || inUse(&s.services)+inUse(&s.dests)+inUse(&s.modes)+len(s.extras) > 0 || s.wheel.next() != 0
	free := uint32(0)
	for id := s.free; id != 0; id = s.entries.at(id).chain {
		free++
	}
	addrs := uint32(0)
	for id := s.clients.free; id != 0; id = binary.NativeEndian.Uint32(s.clients.arena.at(id)[:]) {
		addrs++
	}
	if held || free != s.entries.used || addrs != s.clients.arena.used {
		return fmt.Errorf("an empty shard holds %+v; %d of %d entries and %d of %d addresses free",
			s.index, free, s.entries.used, addrs, s.clients.arena.used)
	}
	return nil
}

// naive is the digest of what was told, worked out in full.
func naive(told []Record, horizon uint64) (d Digests) {
	tick := int64(horizon>>horizonBits) - 1
	newest := map[Key]Record{}
	for _, r := range told {
		if int64(r.Version.Clock>>horizonBits) <= tick && r.Version.Compare(newest[r.Key].Version) > 0 {
			newest[r.Key] = r
		}
	}
	for _, r := range newest {
		if tm := termOf(keyHash(&r.Key), r.Version, r.Timeout); tick < tm.leave {
			d[SliceOf(&r.Key)] ^= tm.sum
		}
	}
	return d
}

func TestDigestsAreOfTheStateAtTheHorizon(t *testing.T) {
	check(t, func(t *rapid.T) error {
		tab, clock := New(1000), NewClock(1)
		var told []Record
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			for range rapid.IntRange(0, 5).Draw(t, "tellings") {
				r := Record{Connection: drawConnection(t), Version: clock.Next()}
				r.Timeout = time.Duration(rapid.SampledFrom([]int{3, 10, 30, 60, 300, 900, 86400, 400 * 86400}).Draw(t, "timeout")) * time.Second
				r.Remaining = r.Timeout
				r.Version.Clock -= rapid.Uint64Range(0, 2e6).Draw(t, "back")
				if o := tab.Apply(&r, 0).Outcome; o == Added || o == Updated {
					told = append(told, r)
				}
			}
			time.Sleep(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
			tab.Expire()
			if rapid.Bool().Draw(t, "ask") {
				h := clock.Now() - rapid.Uint64Range(0, 8e6).Draw(t, "age")
				var d Digests
				if tab.Digests(h, &d) && d != naive(told, h) {
					return fmt.Errorf("the digest at %d is not that of %+v", h, told)
				}
			}
		}
		return nil
	})
}

// A link takes a table's news to another table: what it has sent arrives after
// a while, in order.
type link struct {
	to     *Table
	refs   []Ref
	since  time.Time // when the first of refs came
	flight []sent
	last   time.Time // when the last in flight is due
}

type sent struct {
	rec     Record
	at, due time.Time
}

func (l *link) push(res Result) {
	if res.Queued == 0 {
		return
	}
	if len(l.refs) == 0 {
		l.since = time.Now()
	}
	l.refs = append(l.refs, res.Ref)
}

func (l *link) flush(tab *Table, delay func() time.Duration) {
	for _, ref := range l.refs {
		var r Record
		if tab.Take(ref, ToPeers, &r) {
			if due := time.Now().Add(delay()); due.After(l.last) {
				l.last = due
			}
			l.flight = append(l.flight, sent{r, time.Now(), l.last})
		}
	}
	l.refs = l.refs[:0]
}

func (l *link) deliver() {
	l.flight = slices.DeleteFunc(l.flight, func(s sent) bool {
		if s.due.After(time.Now()) {
			return false
		}
		s.rec.Remaining -= time.Since(s.at)
		l.to.Apply(&s.rec, 0)
		return true
	})
}

// An owner is the node that had a connection's packets last.
type owner struct {
	node int
	at   time.Time
}

// takes reports whether node n may have news of k. A connection does not go
// from node to node while news of it is under way.
func takes(owners map[Key]owner, k Key, n int) bool {
	if o, ok := owners[k]; ok && o.node != n && time.Since(o.at) < 4*time.Second {
		return false
	}
	owners[k] = owner{n, time.Now()}
	return true
}

// Two tables of which each captures, coalesces and tells the other, with
// entries that close, are deleted and expire at moments that differ, are equal
// at every horizon as old as news is late.
func TestDigestsAgreeUnderLoad(t *testing.T) {
	const late = 3 * time.Second
	check(t, func(t *rapid.T) error {
		tabs := [2]*Table{New(1000), New(1000)}
		links := [2]*link{{to: tabs[1]}, {to: tabs[0]}}
		clocks := [2]*Clock{NewClock(1), NewClock(2)}
		owners := map[Key]owner{}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			n := rapid.IntRange(0, 1).Draw(t, "node")
			clocks[n].Observe(clocks[1-n].Now())
			tab, l := tabs[n], links[n]
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				c := drawConnection(t)
				if !takes(owners, c.Key, n) {
					break
				}
				c.Timeout = time.Duration(rapid.SampledFrom([]int{10, 60, 120, 900}).Draw(t, "timeout")) * time.Second
				l.push(tab.Apply(&Record{Connection: c, Version: clocks[n].Next(), Remaining: c.Timeout}, ToPeers))
			case 2:
				k := rapid.SampledFrom(modelKeys).Draw(t, "key")
				var r Record
				if tab.Lookup(k, &r) && r.Remaining < 5*time.Second || !takes(owners, k, n) {
					break // the tombstone would not live to arrive
				}
				l.push(tab.Delete(k, clocks[n].Next(), ToPeers))
			case 3:
				l.flush(tab, func() time.Duration { return time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond })
			case 4:
				tab.Expire()
			}
			time.Sleep(time.Duration(rapid.SampledFrom([]int{1, 100, 700}).Draw(t, "pass")) * time.Millisecond)
			for i, l := range links {
				l.deliver()
				if len(l.refs) > 0 && time.Since(l.since) > 300*time.Millisecond { // nothing waits for a second
					l.flush(tabs[i], func() time.Duration { return 0 })
				}
			}
			h := clocks[0].Now() - uint64(late/time.Microsecond)
			var a, b Digests
			if tabs[0].Digests(h, &a) && tabs[1].Digests(h, &b) {
				if diff := a.Diff(&b); diff.Len() > 0 {
					return fmt.Errorf("slices %v differ at %d", diff, h)
				}
			}
		}
		return nil
	})
}

func TestDigestsAreEqualJustWhenContentsAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(1000), New(1000)
		now := uint64(time.Now().UnixMicro())
		for range rapid.IntRange(0, 12).Draw(t, "records") {
			r := record(rapid.IntRange(0, 3).Draw(t, "key"), Version{now + rapid.Uint64Range(0, 3).Draw(t, "clock"), 1}, 1, time.Hour)
			to := rapid.IntRange(1, 3).Draw(t, "to")
			if to&1 != 0 {
				a.Apply(r, 0)
			}
			if to&2 != 0 {
				b.Apply(r, 0)
			}
		}
		h := now + 2*HorizonTick
		da, db := digests(t, a, h), digests(t, b, h)
		if same := equal(contents(a), contents(b)) == nil; same != (da == db) || same != (da.Sum() == db.Sum()) {
			t.Fatalf("contents equal: %v, digests equal: %v", same, da == db)
		}
		// What differs is found by slice, and mended by what is there.
		diff := da.Diff(&db)
		var c Cursor
		recs := make([]Record, 2)
		for n := a.Walk(&c, &diff, recs); n > 0; n = a.Walk(&c, &diff, recs) {
			for i := range n {
				b.Apply(&recs[i], 0)
			}
		}
		c = Cursor{}
		for n := b.Walk(&c, &diff, recs); n > 0; n = b.Walk(&c, &diff, recs) {
			for i := range n {
				if !diff.Has(SliceOf(&recs[i].Key)) {
					t.Fatal("told of another slice")
				}
				a.Apply(&recs[i], 0)
			}
		}
		if digests(t, a, h+HorizonTick) != digests(t, b, h+HorizonTick) || equal(contents(a), contents(b)) != nil {
			t.Fatal("not mended")
		}
	})
}

// What was shed, or died sooner than its timeout says, leaves nothing behind
// in the digests.
func TestDigestsForgetWhatIsGone(t *testing.T) {
	check(t, func(t *rapid.T) error {
		limit := rapid.SampledFrom([]int{5, 1000}).Draw(t, "limit")
		tab, clock := New(limit), NewClock(1)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			r := Record{Connection: drawConnection(t), Version: clock.Next(), Deleted: rapid.Bool().Draw(t, "deleted")}
			r.Timeout = time.Duration(rapid.SampledFrom([]int{10, 120, 900, 86400}).Draw(t, "timeout")) * time.Second
			r.Remaining = r.Timeout / time.Duration(rapid.IntRange(1, 10).Draw(t, "part"))
			tab.Apply(&r, 0)
			if tab.Len()+tab.Tombstones() > limit {
				return fmt.Errorf("%d connections and %d tombstones, limit %d", tab.Len(), tab.Tombstones(), limit)
			}
			time.Sleep(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
			if rapid.Bool().Draw(t, "tick") {
				tab.Expire()
				var d Digests
				tab.Digests(clock.Now()-2e6, &d)
			}
		}
		time.Sleep(wheelTick - time.Since(tab.start)%wheelTick) // all that is dead is found
		tab.Expire()
		fresh := New(limit)
		tab.Each(func(r *Record) bool { return fresh.Apply(r, 0).Outcome == Added })
		h := clock.Now() + HorizonReach
		var a, b Digests
		if !tab.Digests(h, &a) || !fresh.Digests(h, &b) || a != b {
			return fmt.Errorf("the digests are not those of what is there")
		}
		return nil
	})
}

// inUse is how many values are held.
func inUse[T internable](in *interned[T]) int {
	n := 0
	for i := range in.values {
		if in.values[i].holds > 0 {
			n++
		}
	}
	return n
}
