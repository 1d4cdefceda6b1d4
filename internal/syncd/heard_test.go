package syncd

import (
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/ipvs/usersync"
	"saru/syncproto/peer/peertest"
)

// told is what the module tells of c now.
func (n *node) told(kind usersync.Kind, c conntable.Connection) *usersync.Record {
	return &usersync.Record{
		Connection: c, Kind: kind, Stamp: n.mono.now(), Cookie: 1, Packets: 1, Remaining: c.Timeout, Bound: true,
	}
}

func (n *node) hear(kind usersync.Kind, c conntable.Connection) { n.Heard(n.told(kind, c)) }

const synRecv = 3

func twoNodes(t *testing.T, seed uint64) (a, b *node, network *peertest.Network) {
	t.Helper()
	network = peertest.New(seed)
	a, b = start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
	time.Sleep(3 * time.Second)
	return a, b, network
}

func TestModulesEventsReachThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 101)
		conn := tcp(1, synRecv, time.Minute)
		a.hear(usersync.KindNew, conn)
		time.Sleep(time.Millisecond)
		if got, ok := b.kernel.get(conn.Key); !ok || got.State != synRecv {
			t.Fatalf("half-open: %+v, %v", got, ok)
		}
		conn.State, conn.Timeout = established, 900*time.Second
		a.hear(usersync.KindState, conn)
		time.Sleep(10 * time.Millisecond)
		if got, _ := b.kernel.get(conn.Key); got.State != established {
			t.Errorf("established: %+v", got)
		}
		a.hear(usersync.KindExpired, conn)
		time.Sleep(10 * time.Millisecond)
		if _, ok := b.kernel.get(conn.Key); ok {
			t.Error("expired before its time here, but the peer's kernel still has it")
		}
		if a.kernel.len() != 0 || a.kernel.deleted != 0 {
			t.Error("the own kernel was told its own news")
		}
	})
}

// Two CPUs tell of one connection in two streams.
func TestStampsOrderTheModulesEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 102)
		conn := tcp(1, synRecv, time.Minute)
		first := a.told(usersync.KindNew, conn)
		time.Sleep(time.Millisecond)
		conn.State, conn.Timeout = established, 900*time.Second
		a.hear(usersync.KindState, conn)
		a.Heard(first)
		time.Sleep(100 * time.Millisecond)
		if got, _ := b.kernel.get(conn.Key); got.State != established {
			t.Errorf("the peer has state %d, want the one with the later stamp", got.State)
		}
		// The end of one entry, told after the beginning of the next.
		end := a.told(usersync.KindExpired, conn)
		time.Sleep(time.Millisecond)
		a.hear(usersync.KindNew, conn)
		a.Heard(end)
		time.Sleep(100 * time.Millisecond)
		if _, ok := b.kernel.get(conn.Key); !ok {
			t.Error("the end of the entry before took the next one with it")
		}
		// Within a microsecond the order of coming decides.
		one, two := a.told(usersync.KindState, conn), a.told(usersync.KindState, conn)
		two.State = finWait
		a.Heard(one)
		a.Heard(two)
		time.Sleep(100 * time.Millisecond)
		if got, _ := b.kernel.get(conn.Key); got.State != finWait {
			t.Errorf("state %d of two tellings in one microsecond, want the last", got.State)
		}
	})
}

// What was held up here is not newer for it than what a peer told meanwhile.
func TestDelayedEventsDoNotOutrankThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 103)
		conn := tcp(1, established, 900*time.Second)
		late := a.told(usersync.KindState, conn)
		time.Sleep(time.Second) // a's daemon is stopped
		moved := conn
		moved.State, moved.Timeout = finWait, 120*time.Second
		b.hear(usersync.KindAdopted, moved)
		time.Sleep(100 * time.Millisecond)
		a.Heard(late)
		time.Sleep(100 * time.Millisecond)
		var r conntable.Record
		if !a.table.Lookup(conn.Key, &r) || r.State != finWait || r.Version.Node != b.self {
			t.Errorf("a has %+v, want b's", r)
		}
		if b.kernel.len() != 0 {
			t.Error("b's kernel was told a's older state")
		}
	})
}

func TestExpiryOfAPeersConnectionIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 104)
		conn, other := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second)
		a.hear(usersync.KindNew, conn)
		a.hear(usersync.KindNew, other)
		time.Sleep(100 * time.Millisecond)
		b.hear(usersync.KindExpired, conn) // b's copy was evicted
		// Another real server has the key by now.
		before := other
		before.Dest = realB
		a.hear(usersync.KindExpired, before)
		// In its last second a connection ends everywhere by itself.
		closing := tcp(3, finWait, 2*time.Second)
		a.hear(usersync.KindState, closing)
		time.Sleep(1500 * time.Millisecond)
		a.hear(usersync.KindExpired, closing)
		time.Sleep(100 * time.Millisecond)
		for _, c := range []conntable.Connection{conn, other} {
			var r conntable.Record
			if !a.table.Lookup(c.Key, &r) || r.Deleted {
				t.Errorf("%v is deleted", c.Client)
			}
		}
		if n := a.table.Tombstones() + b.table.Tombstones(); n != 0 {
			t.Errorf("%d tombstones", n)
		}
	})
}

// A fakeTable is a kernel's table to be dumped.
type fakeTable map[conntable.Key]usersync.Record

func (f fakeTable) Dump(_ usersync.Filter, fn func(*usersync.Record) error) error {
	for _, r := range f {
		if err := fn(&r); err != nil {
			return err
		}
	}
	return nil
}

func (f fakeTable) Get(k conntable.Key) (usersync.Record, bool, error) {
	r, ok := f[k]
	return r, ok, nil
}

func (f fakeTable) put(r *usersync.Record) { f[r.Key] = *r }

func TestReconcile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 105)
		est := func(i int) conntable.Connection { return tcp(i, established, 900*time.Second) }
		ours, changed, ended, theirs, adopted, stale, missed := est(0), est(2), est(4), est(6), est(8), est(10), est(12)
		for _, c := range []conntable.Connection{ours, changed, ended} {
			a.hear(usersync.KindNew, c)
		}
		for _, c := range []conntable.Connection{theirs, adopted, stale} {
			b.hear(usersync.KindNew, c)
		}
		time.Sleep(100 * time.Millisecond)
		told := b.kernel.injections()

		// Then a hears nothing for a while.
		k := fakeTable{}
		injected := func(c conntable.Connection) {
			r := a.told(usersync.KindNone, c)
			r.Packets, r.Flags = 0, r.Flags|conntable.FlagSync
			k.put(r)
		}
		k.put(a.told(usersync.KindNone, ours))
		injected(theirs)
		old := stale
		old.State = synRecv
		injected(old)
		time.Sleep(time.Second)
		changed.State, changed.Timeout = finWait, 120*time.Second
		adopted.State, adopted.Timeout = finWait, 120*time.Second
		for _, c := range []conntable.Connection{changed, adopted, missed} {
			k.put(a.told(usersync.KindNone, c))
		}
		time.Sleep(100 * time.Millisecond)

		out, err := a.reconcile(k, false)
		must(t, err)
		if want := (Reconciled{Entries: 6, News: 3, Gone: 1, Told: 1}); out != want {
			t.Errorf("found %+v, want %+v", out, want)
		}
		time.Sleep(100 * time.Millisecond)
		for _, c := range []conntable.Connection{changed, adopted, missed} {
			if got, _ := b.kernel.get(c.Key); got.State != c.State {
				t.Errorf("b's kernel has %+v, want %+v", got, c)
			}
		}
		if _, there := b.kernel.get(ended.Key); there {
			t.Error("b's kernel still has the connection that ended")
		}
		if n := b.kernel.injections() - told; n != 3 {
			t.Errorf("b's kernel was told %d times, want 3", n)
		}
		if got, ok := a.kernel.get(stale.Key); !ok || got.State != established {
			t.Errorf("a's kernel was told %+v, %v, want what b told", got, ok)
		}
		// All peers' entries once more, to hear of their first packet.
		if out, err = a.reconcile(k, true); err != nil || out.Told != 2 || out.News != 0 {
			t.Errorf("marking: %+v, %v", out, err)
		}
	})
}

// yields is what decides between an entry that packets have touched and a
// peer's telling.
func TestNewerPacketKeepsTheKernelsEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := twoNodes(t, 106)
		conn := tcp(1, established, 900*time.Second)
		quiet := a.told(usersync.KindNone, conn)
		time.Sleep(time.Second)
		b.hear(usersync.KindState, conn)
		time.Sleep(time.Second)
		// Its last packet came 2 s ago, before what b told.
		quiet.Stamp, quiet.Remaining = a.mono.now(), conn.Timeout-2*time.Second
		if !a.yields(quiet) {
			t.Error("an entry without a packet since must yield to the peer")
		}
		active := a.told(usersync.KindNone, conn)
		active.State = finWait
		active.Remaining -= 500 * time.Millisecond
		if a.yields(active) {
			t.Error("an entry with a packet since must not yield")
		}
		time.Sleep(100 * time.Millisecond)
		if got, _ := b.kernel.get(conn.Key); got.State != finWait {
			t.Errorf("b's kernel has state %d: the newer one must have been told", got.State)
		}
	})
}

func BenchmarkHeard(b *testing.B) {
	e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1)})
	recs := make([]usersync.Record, 4096)
	for i := range recs {
		recs[i] = usersync.Record{Connection: tcp(i, established, 900*time.Second), Kind: usersync.KindNew, Remaining: 900 * time.Second}
	}
	refs := e.toPeers.swap(nil)
	var r conntable.Record
	b.ReportAllocs()
	for i := range b.N {
		rec := &recs[i%len(recs)]
		rec.Stamp = e.mono.now()
		e.Heard(rec)
		if i%len(recs) == 0 {
			refs = e.toPeers.swap(refs)
			for _, ref := range refs {
				e.table.Take(ref, conntable.ToPeers, &r)
			}
		}
	}
}
