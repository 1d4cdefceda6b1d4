package usersync_test

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
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
