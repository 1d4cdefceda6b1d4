package ipvs

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/syncproto/kernelsync"
)

// TestNoServices: without a virtual service there is nothing to capture, which
// is no fault, and the heartbeat starts with the first one.
func TestNoServices(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	time.Sleep(silentAfter + 2*judgeEvery)
	if ok, why := tap.Healthy(); !ok {
		t.Error(why)
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a heartbeat", func() bool { return !tap.LastBeat().IsZero() })
	if ok, why := tap.Healthy(); !ok {
		t.Error(why)
	}
}

// TestLoopbackDown: refused, and nothing is left.
func TestLoopbackDown(t *testing.T) {
	if !inside(t) {
		return
	}
	before := everything(t)
	_, err := OpenTap(testLog(t), testConfig(t))
	if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "ip link set lo up") {
		t.Errorf("%v", err)
	}
	if after := everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestNoIPVS: a kernel without IPVS is bad input that says so.
func TestNoIPVS(t *testing.T) {
	if c, err := Dial(); err == nil {
		c.Close()
		t.Skip("this kernel has IPVS")
	}
	_, err := OpenTap(testLog(t), testConfig(t))
	if config.ExitStatus(err) != config.BadInputStatus || !errors.Is(err, ErrNotSupported) {
		t.Errorf("%v", err)
	}
	if err := ReadConns(nil, func(*Entry) error { return nil }); !errors.Is(err, ErrNotSupported) {
		t.Errorf("%v", err)
	}
}

// TestNamespaces: the table shows the entries of its own namespace only.
func TestNamespaces(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	b := newPeer(t)
	c := bulk(1)[0]
	b.ask("inject", c)
	eventually(t, "entry in the other namespace", func() bool { return b.ask("find", c).Found })
	if _, ok, err := inTable(c.Key); ok || err != nil {
		t.Errorf("an entry of another namespace is shown here: %v (%v)", ok, err)
	}
}

// TestGenl: the netlink client against the kernel.
func TestGenl(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := c.Info()
	if err != nil || info.TableSize == 0 || info.Major != 1 {
		t.Errorf("info %+v, %v", info, err)
	}
	if err := ipvsadm("-A", "-f", "5", "-s", "wlc", "-p", "60"); err != nil {
		t.Fatal(err)
	}
	services, err := c.Services()
	if err != nil || len(services) != 2 {
		t.Fatalf("services %+v, %v", services, err)
	}
	t.Logf("%+v %+v", info, services)
	for _, s := range services {
		switch {
		case s.FWMark == 5 && s.Scheduler == "wlc" && s.Flags&ServicePersistent != 0 && s.Timeout == 60:
		case s.Addr == netip.MustParseAddrPort(vip+":80") && s.Protocol == kernelsync.ProtoTCP && s.Scheduler == "rr":
			d, err := c.Dests(s)
			if err != nil || len(d) != 1 || d[0].Addr != s.Addr || d[0].Weight != 1 {
				t.Errorf("real servers %+v, %v", d, err)
			}
		default:
			t.Errorf("service %+v", s)
		}
	}
	if d, err := c.Dests(Service{Family: unix.AF_INET, FWMark: 9}); err != nil || len(d) != 0 {
		t.Errorf("real servers of no service: %+v, %v", d, err)
	}
	want := Daemon{Role: Backup, Interface: "lo", SyncID: 3, MaxLen: 1000, Group: netip.MustParseAddr("239.1.2.3"), Port: 9999, TTL: 1}
	if err := c.StartDaemon(want); err != nil {
		t.Fatal(err)
	}
	if err := c.StartDaemon(want); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second start: %v", err)
	}
	got, err := c.Daemons()
	if err != nil || len(got) != 1 {
		t.Fatalf("threads %+v, %v", got, err)
	}
	got[0].MaxLen, got[0].TTL = want.MaxLen, want.TTL // a backup has its own
	if got[0] != want {
		t.Errorf("thread %+v, want %+v", got[0], want)
	}
	if err := c.StopDaemon(Backup); err != nil {
		t.Error(err)
	}
	if err := c.StopDaemon(Backup); !errors.Is(err, unix.ESRCH) {
		t.Errorf("second stop: %v", err)
	}
	if err := c.StartDaemon(Daemon{Role: Master, Interface: "nosuch0"}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("on no interface: %v", err)
	}
}
