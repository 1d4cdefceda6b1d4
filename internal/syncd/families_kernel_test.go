package syncd

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/testnet"
	"saru/ipvs/usersync"
)

// entries returns what director i's kernel has that passes a filter, as the
// module sees it.
func (l *realLAN) entries(i int, filter usersync.Filter) (all []usersync.Record) {
	l.t.Helper()
	must(l.t, testnet.Within(l.Nodes[i], func() error {
		c, err := usersync.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(filter, func(r *usersync.Record) error {
			own := *r
			own.PEData = slices.Clone(r.PEData)
			if r.Seq != nil {
				own.Seq = new(*r.Seq)
			}
			all = append(all, own)
			return nil
		})
	}))
	return all
}

// A service of one address family whose real server is of the other: the
// kernel has it through tunnels, and not beside its sync threads.
func TestModuleMirrorsBothFamiliesInOneService(t *testing.T) {
	l := newRealLAN(t)
	loadModule(t)
	t.Cleanup(func() { unloadModule(t) })
	for i := range 4 {
		l.run(i, "ip", "-6", "addr", "add", fmt.Sprintf("fd97::%d/64", i+1), "dev", "eth0", "nodad")
	}
	for i := range 2 {
		l.run(i, "ipvsadm", "-A", "-t", testVIP+":83", "-s", "rr")
		l.run(i, "ipvsadm", "-a", "-t", testVIP+":83", "-r", "[fd97::4]:83", "-i")
		l.start(i)
	}
	l.synced(0, 1)
	l.awaitSource("module")
	l.via(0)
	must(t, testnet.Within(l.Nodes[nodeClient], func() error {
		// Nobody opens the tunnel: the handshake is never finished.
		if c, err := net.DialTimeout("tcp4", testVIP+":83", 200*time.Millisecond); err == nil {
			c.Close()
			return fmt.Errorf("somebody answered at %v", c.RemoteAddr())
		}
		return nil
	}))
	server := netip.MustParseAddrPort("[fd97::4]:83")
	service := usersync.Filter{Virtual: netip.MustParseAddrPort(testVIP + ":83")}
	owners := l.entries(0, service)
	if len(owners) != 1 || owners[0].Dest != server {
		t.Fatalf("the owner's kernel has %+v", owners)
	}
	var peers []usersync.Record
	testnet.Await(t, "d2's kernel has it", func() bool { peers = l.entries(1, service); return len(peers) == 1 })
	o, p := owners[0], peers[0]
	if p.Key != o.Key || p.Dest != server || p.State != o.State || p.Flags&conntable.FlagFwdMask != o.Flags&conntable.FlagFwdMask {
		t.Errorf("the peer's kernel has %+v, the owner's %+v", p, o)
	}
	for i := range 2 {
		if st := l.status(i); st.Kernel.Drops != 0 || st.Degraded != "" {
			t.Errorf("d%d: %+v %q", i+1, st.Kernel, st.Degraded)
		}
		l.stop(i)
	}
}
