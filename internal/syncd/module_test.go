package syncd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/testnet"
	"saru/ipvs/usersync"
)

// The tests of this file need the module built for the running kernel, which
// kmod/check.sh leaves below .cache.

const moduleName = "ip_vs_user_sync"

func moduleFile() string {
	return filepath.Join("..", "..", ".cache", "kmod", os.Getenv("SARU_LAB_KERNEL"), moduleName+".ko")
}

func moduleBuilt() bool {
	_, err := os.Stat(moduleFile())
	return err == nil && os.Getenv("SARU_LAB_KERNEL") != ""
}

func loadModule(t *testing.T) {
	t.Helper()
	if !moduleBuilt() {
		t.Skip("no module for this kernel: run kmod/check.sh")
	}
	image, err := os.ReadFile(moduleFile())
	must(t, err)
	if err := unix.InitModule(image, ""); err != nil {
		t.Fatalf("load the module: %v", err)
	}
}

func unloadModule(t *testing.T) {
	t.Helper()
	testnet.Await(t, "module unloaded", func() bool {
		err := unix.DeleteModule(moduleName, unix.O_NONBLOCK)
		return err == nil || errors.Is(err, unix.ENOENT)
	})
}

// newModuleLAN is a realLAN with the module loaded and both daemons synced.
func newModuleLAN(t *testing.T) *realLAN {
	t.Helper()
	l := newRealLAN(t)
	loadModule(t)
	t.Cleanup(func() { unloadModule(t) })
	for i := range 2 {
		// Nobody has this real server: the handshake is never finished.
		l.run(i, "ipvsadm", "-A", "-t", testVIP+":81", "-s", "rr")
		l.run(i, "ipvsadm", "-a", "-t", testVIP+":81", "-r", "10.97.0.99:81", "-g")
	}
	l.serve()
	l.via(0)
	for i := range 2 {
		l.start(i)
	}
	for i := range 2 {
		testnet.Await(t, fmt.Sprintf("d%d synced", i+1), func() bool { return l.status(i).Synced })
	}
	return l
}

func (l *realLAN) awaitSource(source string) {
	l.t.Helper()
	for i := range 2 {
		testnet.Await(l.t, fmt.Sprintf("d%d reads the kernel by %s", i+1, source), func() bool {
			st := l.status(i)
			return st.Source == source && st.Degraded == ""
		})
	}
}

// listing is director i's kernel table as ipvsadm prints it.
func (l *realLAN) listing(i int) string { return l.run(i, "ipvsadm", "-Lnc") }

func TestModuleTellsOfHalfOpenConnectionsAndOfTheirEnd(t *testing.T) {
	l := newModuleLAN(t)
	l.awaitSource("module")
	err := testnet.Within(l.Nodes[nodeClient], func() error {
		_, err := net.DialTimeout("tcp4", testVIP+":81", 200*time.Millisecond)
		return err
	})
	if err == nil {
		t.Fatal("nobody answered")
	}
	halfOpen := func(i int) string {
		for line := range strings.Lines(l.listing(i)) {
			if strings.Contains(line, "SYN_RECV") && strings.Contains(line, testVIP+":81") {
				return line
			}
		}
		return ""
	}
	testnet.Await(t, "d2's kernel has the half-open connection", func() bool { return halfOpen(1) != "" })
	if one, two := strings.Fields(halfOpen(0)), strings.Fields(halfOpen(1)); len(one) < 6 || len(two) < 6 || one[3] != two[3] || one[5] != two[5] {
		t.Errorf("d1 has %v, d2 %v", one, two)
	}

	// It ends before its time on d1, thus on d2.
	var key conntable.Key
	must(t, testnet.Within(l.Nodes[0], func() error {
		c, err := usersync.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		vip81 := netip.MustParseAddrPort(testVIP + ":81")
		err = c.Dump(usersync.Filter{Virtual: vip81}, func(r *usersync.Record) error { key = r.Key; return nil })
		if err != nil {
			return err
		}
		res, err := c.Delete(nil, []usersync.Change{{Connection: &conntable.Connection{Key: key}}})
		if err != nil {
			return err
		}
		return res[0].Err()
	}))
	testnet.Await(t, "d2's kernel has it no more", func() bool { return halfOpen(1) == "" })
	for i := range 2 {
		if st := l.status(i); st.Kernel.Drops != 0 {
			t.Errorf("d%d: %+v", i+1, st.Kernel)
		}
	}
}

func TestModuleComesAndGoesUnderTraffic(t *testing.T) {
	l := newModuleLAN(t)
	l.awaitSource("module")
	// A connection after another, all of them kept open.
	var conns []net.Conn
	stop := make(chan struct{})
	var dialling sync.WaitGroup
	dialling.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := testnet.Within(l.Nodes[nodeClient], func() error {
				c, err := net.DialTimeout("tcp4", testVIP+":80", 30*time.Second)
				if err == nil {
					conns = append(conns, c)
				}
				return err
			})
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			time.Sleep(20 * time.Millisecond) // the pace of the load, not a wait
		}
	})
	for range 2 {
		time.Sleep(300 * time.Millisecond)
		unloadModule(t)
		l.awaitSource("daemon")
		time.Sleep(300 * time.Millisecond)
		loadModule(t)
		l.awaitSource("module")
	}
	close(stop)
	dialling.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	t.Logf("%d connections", len(conns))
	established := func(i int) int { return strings.Count(l.listing(i), "ESTABLISHED") }
	testnet.Await(t, "both kernels have all connections", func() bool {
		return established(0) == len(conns) && established(1) == len(conns)
	})
	l.via(1)
	for i, c := range conns {
		echo(t, c, fmt.Sprint("by d2, connection ", i))
	}
	unloadModule(t)
	l.awaitSource("daemon")
	l.via(0)
	for i, c := range conns {
		echo(t, c, fmt.Sprint("by d1, connection ", i))
	}
	for i := range 2 {
		l.stop(i)
		l.asBefore(i)
	}
}

// TestFirstPacketIsHeldBack: when a client hears of its connection the peer's
// kernel has it, so that it survives a power cut right then.
func TestFirstPacketIsHeldBack(t *testing.T) {
	l := newRealLAN(t)
	loadModule(t)
	t.Cleanup(func() { unloadModule(t) })
	l.more = "[kernel]\nsource = \"module\"\ndefer = \"200ms\"\n"
	l.serve()
	l.via(0)
	for i := range 2 {
		l.start(i)
	}
	for i := range 2 {
		testnet.Await(t, fmt.Sprintf("d%d synced", i+1), func() bool { st := l.status(i); return st.Synced && len(st.Peers) == 1 })
	}
	testnet.Await(t, "d1 holds first packets back", func() bool { st := l.status(0); return st.Defer != nil && st.Defer.InEffect })
	var eye *usersync.Client
	must(t, testnet.Within(l.Nodes[1], func() (err error) { eye, err = usersync.Dial(); return err }))
	defer eye.Close()
	has := func(c net.Conn) bool {
		_, there, err := eye.Get(conntable.Key{
			Client: netip.MustParseAddrPort(c.LocalAddr().String()), Virtual: netip.MustParseAddrPort(testVIP + ":80"), Protocol: 6,
		})
		must(t, err)
		return there
	}
	const many = 20
	missing := 0
	for range many {
		if !has(l.dial()) {
			missing++
		}
	}
	st := l.status(0).Defer
	t.Logf("%d of %d were not in d2's kernel when their client heard of them; %+v", missing, many, st)
	// On a slow machine some may have waited in vain, or found no peer that could
	// have answered in time.
	if missing > int(st.Late+st.Passed) || st.Held+st.Passed < many || st.Acked < many/2 {
		t.Errorf("%d missing: %+v", missing, st)
	}
	last := l.dial()
	l.run(0, "ip", "link", "set", "eth0", "down") // d1's power is cut in this millisecond
	l.via(1)
	echo(t, last, "by d2")
	l.run(0, "ip", "link", "set", "eth0", "up")
	for i := range 2 {
		l.stop(i)
		if left := l.run(i, "nft", "list", "tables"); strings.Contains(left, "syncd") {
			t.Errorf("d%d: tables are left: %s", i+1, left)
		}
	}
}
