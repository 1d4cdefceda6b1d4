package ipvs

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

func bulk(n int) []conntable.Connection {
	conns := make([]conntable.Connection, n)
	for i := range conns {
		c := &conns[i]
		c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(82 + i>>16), byte(i >> 8), byte(i)}), 1024)
		c.Virtual = netip.MustParseAddrPort(vip + ":80")
		c.Dest = c.Virtual
		c.Protocol = kernelsync.ProtoTCP
		c.State, c.Flags, c.Timeout = 1, conntable.FlagFwdGate, 900*time.Second
	}
	return conns
}

// bulkVar says how many entries to take, to see what the table's size does:
// bin/lab run --append ip_vs.conn_tab_bits=20 --env IPVS_BULK=300000 ...
const bulkVar = "IPVS_BULK"

// TestBulk: tens of thousands of entries go in without a loss, as fast as the
// kernel takes them; then again, as known ones. On one processor
// (SARU_LAB_ACCEL=icount, --smp 1) the kernel leaves part of them lying on lo for
// a while, which must not look as if it had taken them.
func TestBulk(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	n := 30_000
	if s := os.Getenv(bulkVar); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s=%q: want a number", bulkVar, s)
		}
	}
	conns := bulk(n)
	for _, what := range []string{"new", "known"} {
		thread := backupCPU(t)
		start := time.Now()
		if err := errors.Join(tap.Inject(conns), tap.Settle(t.Context())); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		thread = backupCPU(t) - thread
		t.Logf("%d entries, %s, in %v: %.0f/s; of the backup thread %v each",
			n, what, took, float64(n)/took.Seconds(), thread/time.Duration(n))
	}
	services, err := tap.client.Services()
	if err != nil || len(services) != 1 {
		t.Fatalf("services %+v, %v", services, err)
	}
	dests, err := tap.client.Dests(services[0])
	if err != nil || len(dests) != 1 || dests[0].Active != uint32(n) {
		t.Errorf("real servers %+v, %v, right after the kernel had settled; want %d active; %+v", dests, err, n, tap.Stats())
	}
	read, start := 0, time.Now()
	err = ReadConns(nil, func(*Entry) error { read++; return nil })
	t.Logf("%d entries read from /proc in %v", read, time.Since(start))
	if err != nil || read < n {
		t.Errorf("%d entries read, %v; want all %d", read, err, n)
	}
	if s := tap.Stats(); s.InjectDrops != 0 || s.Injected != 2*uint64(n) {
		t.Errorf("%+v", s)
	}
}

// backupCPU is the processor time of the kernel's backup thread so far. Its
// process is found by name: a test's guest has one at a time.
func backupCPU(t *testing.T) time.Duration {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(comm), "ipvs-b") {
			continue
		}
		// Nanoseconds on a processor come first (fs/proc/base.c).
		b, err := os.ReadFile(filepath.Join(filepath.Dir(name), "schedstat"))
		if err != nil {
			t.Fatal(err)
		}
		ns, _, _ := strings.Cut(string(b), " ")
		d, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(d)
	}
	t.Fatal("no thread ipvs-b")
	return 0
}
