package usersync_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// numbered is an entry that no service has.
func numbered(i uint32, conn *conntable.Connection) usersync.Change {
	a := [4]byte{11}
	binary.BigEndian.PutUint32(a[:], 11<<24|i)
	*conn = conntable.Connection{
		Key: conntable.Key{
			Client:   netip.AddrPortFrom(netip.AddrFrom4(a), 1024),
			Virtual:  netip.MustParseAddrPort(vip + ":443"),
			Protocol: 6,
		},
		Dest:    netip.MustParseAddrPort(serverIP + ":443"),
		State:   tcpEstablished,
		Timeout: time.Hour,
	}
	return usersync.Change{Connection: conn}
}

func numberedRange(from, n uint32) []usersync.Change {
	conns := make([]conntable.Connection, n)
	changes := make([]usersync.Change, n)
	for i := range changes {
		changes[i] = numbered(from+uint32(i), &conns[i])
	}
	return changes
}

// dumpNumbers returns how often each numbered entry below limit was told.
func dumpNumbers(t *testing.T, cl *usersync.Client, limit uint32) []int {
	t.Helper()
	told := make([]int, limit)
	must(t, cl.Dump(usersync.Filter{}, func(r *usersync.Record) error {
		a := r.Client.Addr().As4()
		if i := binary.BigEndian.Uint32(a[:]) & 0xffffff; a[0] == 11 && i < limit {
			told[i]++
		}
		return nil
	}))
	return told
}

// TestDumpUnderChange: whatever comes and goes, what stays is told.
func TestDumpUnderChange(t *testing.T) {
	if !inside(t) {
		return
	}
	cl := dialModule(t)
	const stay = 3000
	res, err := cl.Create(nil, numberedRange(0, stay))
	results(t, res, err, usersync.Result.Created)
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			some := numberedRange(1<<20, 1000)
			if _, err := cl.Create(nil, some); err != nil {
				t.Errorf("create: %v", err)
			}
			if _, err := cl.Delete(nil, some); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
	})
	twice := 0
	for range 15 {
		for i, n := range dumpNumbers(t, cl, stay) {
			if n == 0 {
				t.Fatalf("entry %d was not told", i)
			}
			twice += n - 1
		}
	}
	close(stop)
	churn.Wait()
	t.Logf("%d entries were told twice", twice)
	healthy(t)
}

// TestInterruptedDump: whoever begins a dump may go away before its end,
// and the table may be emptied meanwhile.
func TestInterruptedDump(t *testing.T) {
	if !inside(t) {
		return
	}
	before := resources(t)
	cl := dialModule(t)
	const many = 3000 // far more than one answer holds
	create := func() {
		t.Helper()
		res, err := cl.Create(nil, numberedRange(0, many))
		results(t, res, err, usersync.Result.Created)
	}
	remove := func() {
		t.Helper()
		res, err := cl.Delete(nil, numberedRange(0, many))
		results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	}
	create()
	for i := range 300 {
		c, err := usersync.Dial()
		must(t, err)
		filter := usersync.Filter{}
		if i%2 == 0 {
			filter.Protocol = 6 // what is kept of it must go with the dump
		}
		must(t, c.BeginDump(filter))
		must(t, c.Close())
	}
	must(t, cl.BeginDump(usersync.Filter{}))
	// The table is emptied, and filled again, between two answers.
	remove()
	n, err := cl.EndDump()
	must(t, err)
	t.Logf("%d entries were told after they had gone", n)
	if n > many/2 {
		t.Errorf("%d of %d entries were told after they had gone", n, many)
	}
	create()
	for i, n := range dumpNumbers(t, cl, many) {
		if n != 1 {
			t.Fatalf("the next dump: entry %d was told %d times", i, n)
		}
	}
	remove()
	must(t, cl.Close())
	// A dump that was not ended would hold the module, and its filter memory.
	unload(t)
	eventually(t, "as before", func() bool { return before.like(resources(t)) })
	healthy(t)
}

// TestLongChains: a table that is far too small, whose buckets do not fit in
// a message.
func TestLongChains(t *testing.T) {
	if !inside(t) {
		return
	}
	unload := func() {
		eventually(t, "modules unloaded", func() bool {
			_ = unix.DeleteModule("ip_vs_user_sync", unix.O_NONBLOCK)
			for _, m := range []string{"ip_vs_pe_sip", "nf_conntrack_sip", "ip_vs_rr"} {
				_ = unix.DeleteModule(m, unix.O_NONBLOCK)
			}
			err := unix.DeleteModule("ip_vs", unix.O_NONBLOCK)
			return err == nil || err == unix.ENOENT
		})
	}
	unload()
	must(t, command("modprobe", "ip_vs", "conn_tab_bits=8"))
	must(t, insmod())
	cl, err := usersync.Dial()
	must(t, err)
	st, err := cl.Stats()
	must(t, err)
	if st.TableSize != 256 {
		t.Errorf("table of %d buckets", st.TableSize)
	}
	const many = 70_000
	res, err := cl.Create(nil, numberedRange(0, many))
	results(t, res, err, usersync.Result.Created)
	start := time.Now()
	for i, n := range dumpNumbers(t, cl, many) {
		if n != 1 {
			t.Fatalf("entry %d was told %d times", i, n)
		}
	}
	t.Logf("%d entries in %v", many, time.Since(start))
	res, err = cl.Delete(nil, numberedRange(0, many))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	must(t, cl.Close())
	healthy(t)
	unload()
	must(t, command("modprobe", "ip_vs"))
}

// TestDump: the dump is the table as /proc shows it, in its own namespace.
func TestDump(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	s.serve(t)
	cl := dialModule(t)
	const many = 3000
	start := time.Now()
	res, err := cl.Create(nil, bulk(many))
	results(t, res, err, func(r usersync.Result) bool { return r.Created() && r.Bound() })
	t.Logf("created %d in %v", many, time.Since(start))
	if n := activeConns(t); n != many {
		t.Errorf("%d active connections at the real server", n)
	}
	for range 5 {
		_, err := s.dial(t, "tcp4", "82", 10*time.Second)
		must(t, err)
	}
	s.udp(t, 5001, 53)

	got := map[conntable.Key]usersync.Record{}
	start = time.Now()
	must(t, cl.Dump(usersync.Filter{}, func(r *usersync.Record) error {
		if _, twice := got[r.Key]; twice {
			t.Errorf("told twice: %+v", r.Key)
		}
		got[r.Key] = *r
		return nil
	}))
	t.Logf("dumped %d in %v", len(got), time.Since(start))
	n := 0
	must(t, ipvs.ReadConns(nil, func(e *ipvs.Entry) error {
		n++
		r, ok := got[e.Key]
		// What expires between the two counts down.
		if !ok || r.Dest != e.Dest || r.State != e.State || (r.Flags&conntable.FlagSync != 0) != e.Synced ||
			e.Expires > r.Remaining+time.Second || e.Expires < r.Remaining-20*time.Second {
			t.Errorf("/proc has %+v, the dump %v %+v", *e, ok, r)
		}
		return nil
	}))
	if n != len(got) || n != many+5+1+1 {
		t.Errorf("/proc has %d entries, the dump %d", n, len(got))
	}

	count := func(f usersync.Filter) (n int) {
		must(t, cl.Dump(f, func(*usersync.Record) error { n++; return nil }))
		return n
	}
	for _, f := range []struct {
		usersync.Filter
		want int
	}{
		{usersync.Filter{Protocol: 17}, 1},
		{usersync.Filter{Virtual: netip.MustParseAddrPort(vip + ":82")}, 6},
		{usersync.Filter{Dest: netip.MustParseAddrPort(serverIP + ":5353")}, 1},
		{usersync.Filter{Dest: netip.MustParseAddrPort(absentIP + ":0")}, 0},
		{usersync.Filter{Protocol: 6, Virtual: netip.MustParseAddrPort("[2001:db8::1]:80")}, 0},
	} {
		if n := count(f.Filter); n != f.want {
			t.Errorf("filter %+v: %d entries, want %d", f.Filter, n, f.want)
		}
	}
	// Interrupted: the next one is whole again.
	stop := errors.New("enough")
	if err := cl.Dump(usersync.Filter{}, func(*usersync.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("interrupted dump: %v", err)
	}
	if n := count(usersync.Filter{}); n != len(got) {
		t.Errorf("after an interrupted dump: %d entries", n)
	}
	st, err := cl.Stats()
	must(t, err)
	if st.Connections != uint64(len(got)) || st.Created != many || st.Refused != 0 || st.TableSize < 256 {
		t.Errorf("%+v", st)
	}

	start = time.Now()
	res, err = cl.Delete(nil, bulk(many))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	t.Logf("deleted %d in %v", many, time.Since(start))
	if n := activeConns(t); n != 0 {
		t.Errorf("%d active connections left at the real server", n)
	}
	if n := count(usersync.Filter{}); n != len(got)-many {
		t.Errorf("%d entries left", n)
	}
}
