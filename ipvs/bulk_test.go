package ipvs

import (
	"net/netip"
	"testing"
	"time"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

func bulk(n int) []conntable.Connection {
	conns := make([]conntable.Connection, n)
	for i := range conns {
		c := &conns[i]
		c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 82, byte(i >> 8), byte(i)}), 1024)
		c.Virtual = netip.MustParseAddrPort(vip + ":80")
		c.Dest = c.Virtual
		c.Protocol = kernelsync.ProtoTCP
		c.State, c.Flags, c.Timeout = 1, conntable.FlagFwdGate, 900*time.Second
	}
	return conns
}

// TestBulk: tens of thousands of entries go in without a loss, as fast as the
// kernel takes them.
func TestBulk(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	const n = 30000
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
	eventually(t, "all entries active at their real server", func() bool {
		dests, err := tap.client.Dests(services[0])
		if err != nil || len(dests) != 1 {
			t.Fatalf("real servers %+v, %v", dests, err)
		}
		active = dests[0].Active
		return active == n
	})
	t.Logf("%d entries in %v, %.0f/s; %+v", n, took, n/took.Seconds(), tap.Stats())
	if s := tap.Stats(); s.InjectDrops != 0 || s.Injected != n {
		t.Errorf("%+v", s)
	}
}
