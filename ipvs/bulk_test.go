package ipvs

import (
	"net/netip"
	"os"
	"strconv"
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
// kernel takes them.
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
	start := time.Now()
	if err := tap.Inject(bulk(n)); err != nil {
		t.Fatal(err)
	}
	if err := tap.inj.drain(0); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	services, err := tap.client.Services()
	if err != nil || len(services) != 1 {
		t.Fatalf("services %+v, %v", services, err)
	}
	var active uint32
	t.Cleanup(func() { t.Logf("%d of %d entries are active; %+v", active, n, tap.Stats()) })
	eventually(t, "all entries active at their real server", func() bool {
		dests, err := tap.client.Dests(services[0])
		if err != nil || len(dests) != 1 {
			t.Fatalf("real servers %+v, %v", dests, err)
		}
		active = dests[0].Active
		return active == uint32(n)
	})
	t.Logf("%d entries in %v, %.0f/s; %+v", n, took, float64(n)/took.Seconds(), tap.Stats())
	if s := tap.Stats(); s.InjectDrops != 0 || s.Injected != uint64(n) {
		t.Errorf("%+v", s)
	}
}
