package conntable

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// crowded are keys of one shard, of a few services each.
var crowded = func() (keys []Key) {
	for port := uint16(1); len(keys) < 12; port++ {
		k := testKey(int(port))
		k.Virtual = netip.AddrPortFrom(k.Virtual.Addr(), 80+port%4)
		if SliceOf(&k)%shardCount == 0 {
			keys = append(keys, k)
		}
	}
	return keys
}()

// Many at a time are merged as one by one, also where the table is full and
// services come and go with their last connections in the midst.
func TestBatchIsOneByOne(t *testing.T) {
	for name, c := range map[string]struct {
		keys  []Key
		limit int
	}{"room": {modelKeys, 1000}, "full": {crowded, 3}} {
		t.Run(name, func(t *testing.T) {
			check(t, func(t *rapid.T) error { return batchIsOneByOne(t, c.keys, c.limit) })
		})
	}
}

func batchIsOneByOne(t *rapid.T, keys []Key, limit int) error {
	one, many, clock := New(limit), New(limit), NewClock(1)
	for _, tab := range []*Table{one, many} {
		tab.RefuseLate(clock, time.Hour)
	}
	var b Batch
	for range rapid.IntRange(1, 20).Draw(t, "batches") {
		recs := make([]Record, rapid.IntRange(0, 20).Draw(t, "records"))
		for i := range recs {
			r := &recs[i]
			r.Connection = drawConnection(t)
			r.Key = rapid.SampledFrom(keys).Draw(t, "which")
			r.Timeout = time.Duration(rapid.SampledFrom([]int{10, 100, 900}).Draw(t, "timeout")) * time.Second
			r.Remaining, r.Deleted = r.Timeout, rapid.IntRange(0, 5).Draw(t, "deleted") == 0
			if r.Version = clock.Shared(); rapid.Bool().Draw(t, "own version") {
				r.Version = clock.Next()
			}
		}
		q := rapid.SampledFrom([]Queue{0, ToPeers, ToPeers | ToLegacy}).Draw(t, "queue")
		least := rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "least")
		results := many.HearAll(&b, recs, q, least)
		var refs []Ref
		for i := range recs {
			want := one.Hear(&recs[i], q, least)
			if !reflect.DeepEqual(results[i], want) {
				return fmt.Errorf("record %d: %+v, want %+v", i, results[i], want)
			}
			refs = append(refs, want.Ref)
		}
		if rapid.Bool().Draw(t, "take") {
			var want []Record
			for _, ref := range refs {
				var r Record
				if one.Take(ref, ToPeers, &r) {
					want = append(want, r)
				}
			}
			if got := many.TakeAll(refs, ToPeers, nil); len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
				return fmt.Errorf("taken: %+v, want %+v", got, want)
			}
			clock.Turn()
		}
		time.Sleep(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
		if a, b := one.Expire(), many.Expire(); a != b {
			return fmt.Errorf("%d and %d expired", a, b)
		}
	}
	h := clock.Now() + HorizonReach
	if digests(t, one, h) != digests(t, many, h) || !reflect.DeepEqual(contents(one), contents(many)) || one.Shed() != many.Shed() {
		return fmt.Errorf("the tables differ")
	}
	return nil
}

// A refresh of which the peers need not hear lets a connection live on, and
// changes no version and no digest.
func TestHear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, clock := New(10), NewClock(1)
		tab.RefuseLate(clock, time.Hour)
		hear := func(change func(*Record)) Outcome {
			r := record(1, clock.Next(), 1, 100*time.Second)
			change(r)
			return tab.Hear(r, ToPeers, time.Minute).Outcome
		}
		same := func(*Record) {}
		if got := hear(same); got != Added {
			t.Fatal(got)
		}
		var told, r Record
		tab.Lookup(testKey(1), &told)
		time.Sleep(50 * time.Second)
		if got := hear(same); got != Extended || !tab.Lookup(testKey(1), &r) || r.Remaining != 100*time.Second || r.Version != told.Version {
			t.Errorf("%v, %+v", got, r)
		}
		time.Sleep(time.Second) // the peers know of less than half
		if got := hear(same); got != Updated {
			t.Errorf("in the second half: %v", got)
		}
		for name, change := range map[string]func(*Record){
			"state":        func(r *Record) { r.State = 2 },
			"real server":  func(r *Record) { r.Dest = netip.MustParseAddrPort("10.0.0.2:80") },
			"flags":        func(r *Record) { r.Flags = FlagInactive },
			"mark":         func(r *Record) { r.FWMark = 7 },
			"shorter":      func(r *Record) { r.Timeout = 90 * time.Second },
			"sequence":     func(r *Record) { r.Seq = &SeqPair{} },
			"data":         func(r *Record) { r.PEName, r.PEData = "sip", []byte("x") },
			"end":          func(r *Record) { r.Deleted = true },
			"another node": func(r *Record) { r.Version.Node = 2 },
			"below least":  func(r *Record) { r.Timeout = 59 * time.Second },
		} {
			hear(func(r *Record) { r.Deleted = true }) // so that the next one is told
			if got := hear(same); got != Updated {
				t.Fatal(got)
			}
			if got := hear(change); got != Updated {
				t.Errorf("another %s: %v", name, got)
			}
		}
	})
}
