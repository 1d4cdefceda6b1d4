package syncd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"saru/conntable"
	"saru/internal/config"
	"saru/internal/control"
	"saru/internal/task"
	"saru/internal/testnet"
	"saru/syncproto/peer"
)

// The tests of this file run whole processes, this test's program, in network
// namespaces; all of syncd but the kernel, which is a fake that tells of a new
// connection ten times a second.

const envProcess = "SYNCD_TEST_PROCESS"

// child runs a syncd with the configuration at path until it is told to stop,
// and returns its exit status.
func child(path string, run func(ctx context.Context, path string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := run(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return config.ExitStatus(err)
}

// runProcess is syncd on a fake kernel.
func runProcess(ctx context.Context, path string) error {
	s, err := Load(path)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s.UDP.Log = log
	udp, err := peer.NewUDP(s.UDP)
	if err != nil {
		return err
	}
	defer udp.Close()
	e := New(Config{Node: s.Node, Keys: s.Keys, Transport: udp, Log: log})
	e.SetKernel(newFakeKernel())
	ctl, err := control.Listen("syncd", s.Socket, e.Handler())
	if err != nil {
		return err
	}
	defer ctl.Close()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	r := &reloader{Options: Options{Hangup: hangup, Config: path}, log: log, engine: e, now: s}
	n := uint32(0)
	addr := conntable.NodeIDOf(filepath.Base(path))
	traffic := task.Func{Name: "traffic", Do: func(ctx context.Context) error {
		return every(ctx, 100*time.Millisecond, func() {
			n++
			c := tcp(0, established, 900*time.Second)
			c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(addr), byte(n >> 8), byte(n)}), 1024)
			e.Captured(&c)
		})
	}}
	return task.Run(ctx, nil, e, ctl, r, traffic)
}

// daemons are syncds, each a process on its node of a LAN.
type daemons struct {
	*lan
	dir   string
	env   string // tells the program which child it is
	more  string // of the configuration, appended
	log   io.Writer
	procs []*exec.Cmd
}

func newDaemons(t *testing.T, nodes int, env string) *daemons {
	l := &daemons{lan: newLAN(t, nodes), dir: t.TempDir(), env: env, log: os.Stderr, procs: make([]*exec.Cmd, nodes)}
	must(t, os.WriteFile(filepath.Join(l.dir, "key"), []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
	return l
}

func (l *daemons) socket(i int) string { return filepath.Join(l.dir, fmt.Sprintf("d%d.sock", i+1)) }

func (l *daemons) start(i int) {
	l.t.Helper()
	l.startAs(i, fmt.Sprintf("d%d", i+1))
}

// startAs starts the one of node i, by a name.
func (l *daemons) startAs(i int, name string) {
	l.t.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("d%d.toml", i+1))
	must(l.t, os.WriteFile(path, fmt.Appendf(nil, "[sync]\nnode = %q\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\n%s",
		name, filepath.Join(l.dir, "key"), l.socket(i), l.more), 0o600))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), l.env+"="+path)
	cmd.Stderr = l.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(l.t, testnet.Within(l.Nodes[i], cmd.Start))
	l.procs[i] = cmd
	l.t.Cleanup(func() { l.stop(i) })
}

func (l *daemons) stop(i int) {
	if cmd := l.procs[i]; cmd != nil {
		l.procs[i] = nil
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("d%d: %v", i+1, err)
		}
	}
}

func (l *daemons) status(i int) (st Status) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	control.NewClient(l.socket(i)).Get(ctx, "/status", &st) // not there yet: not synced
	return st
}

// synced waits until those of the given nodes are.
func (l *daemons) synced(nodes ...int) {
	l.t.Helper()
	for _, i := range nodes {
		testnet.Await(l.t, fmt.Sprintf("d%d synced", i+1), func() bool { return l.status(i).Synced })
	}
}

// goesOn waits until news of node from reaches node to that was made after the
// call.
func (l *daemons) goesOn(what string, from, to int) {
	l.t.Helper()
	already := l.status(from).Connections.Owned
	testnet.Await(l.t, what, func() bool {
		for _, p := range l.status(to).Peers {
			if p.State == "up" && p.Missing == 0 && l.status(to).Connections.Mirror-l.status(to).Connections.Owned > already {
				return true
			}
		}
		return false
	})
}

// An interface that is deleted and made again, or only down for a while, is
// joined anew: nothing needs to be restarted, and nothing is lost for good.
func TestInterfaceVanishesAndReturns(t *testing.T) {
	l := newDaemons(t, 2, envProcess)
	l.start(0)
	l.start(1)
	l.synced(0, 1)
	l.goesOn("d1 hears d2", 1, 0)

	nh := testnet.Handle(t, l.Nodes[1])
	eth, err := nh.LinkByName("eth0")
	must(t, err)
	l.warns(1, "")
	must(t, nh.LinkSetDown(eth))
	l.warns(1, `sync.interface "eth0" is down`)
	testnet.Await(t, "d1 hears no d2 whose link is down", func() bool { return l.status(0).Peers[0].State == "silent" })
	must(t, nh.LinkSetUp(eth))
	l.goesOn("d1 hears d2 after its link was down", 1, 0)
	l.goesOn("d2 hears d1 after its link was down", 0, 1)
	l.warns(1, "")

	must(t, nh.LinkDel(eth))
	l.warns(1, `sync.interface "eth0" is gone`)
	testnet.Await(t, "d1 hears no d2 that has no interface", func() bool { return l.status(0).Peers[0].State == "silent" })
	// Longer than it takes to notice.
	testnet.Await(t, "d2 goes on by itself", func() bool {
		before := l.status(1).Connections.Owned
		time.Sleep(2 * time.Second)
		return l.status(1).Connections.Owned > before
	})
	// One of that name comes, first without a carrier, then without our address.
	testnet.Cable(t, nh, "eth0", l.Nodes[1], "other0")
	testnet.Up(t, nh, "eth0")
	l.warns(1, `sync.interface "eth0" has no carrier`)
	testnet.Up(t, nh, "other0")
	l.warns(1, `sync.interface "eth0" is back, and cannot be used: `)
	eth, err = nh.LinkByName("eth0")
	must(t, err)
	must(t, nh.LinkDel(eth))

	l.Plug(1)
	l.goesOn("d1 hears d2 on its new interface", 1, 0)
	l.goesOn("d2 hears d1 on its new interface", 0, 1)
	l.warns(1, "")
	l.same()
}

// An interface without an address may get one, as at boot: syncd ends with the
// status after which the service tries again, not that of a wrong configuration.
func TestAddressMayComeLate(t *testing.T) {
	l := newDaemons(t, 1, envProcess)
	nh := testnet.Handle(t, l.Nodes[0])
	eth, err := nh.LinkByName("eth0")
	must(t, err)
	addrs, err := nh.AddrList(eth, netlink.FAMILY_V4)
	must(t, err)
	if len(addrs) == 0 {
		t.Fatal("eth0 has no address to take away, so this test shows nothing")
	}
	for i := range addrs {
		must(t, nh.AddrDel(eth, &addrs[i]))
	}
	var said bytes.Buffer
	l.log = &said
	l.start(0)
	cmd := l.procs[0]
	l.procs[0] = nil
	err = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 1 || !strings.Contains(said.String(), `sync.interface = "eth0": has no IPv4 address`) {
		t.Errorf("without an address: status %d, %v, said %q; want 1, and what is missing", got, err, &said)
	}
	must(t, nh.AddrAdd(eth, &addrs[0]))
	l.log = os.Stderr
	l.start(0)
	l.synced(0)
}

// warns waits until node i warns of what, or if that is empty of nothing.
func (l *daemons) warns(i int, what string) {
	l.t.Helper()
	testnet.Await(l.t, fmt.Sprintf("d%d warns: %q", i+1, what), func() bool {
		st := l.status(i)
		said := strings.Join(st.Warnings, "\n")
		return st.Synced && strings.Contains(said, what) && (what != "" || said == "")
	})
}

// Two directors of one name keep serving their own connections, hear a third
// one, and say what is wrong.
func TestTwoOfOneName(t *testing.T) {
	l := newDaemons(t, 3, envProcess)
	l.start(0)
	l.startAs(1, "d1")
	l.start(2)
	l.synced(0, 1, 2)
	for i := range 2 {
		testnet.Await(t, "the clash is told", func() bool { return l.status(i).Drops["name_clash"] > 0 })
		var b strings.Builder
		st := l.status(i)
		must(t, st.Print(&b))
		if !strings.Contains(b.String(), "name") {
			t.Errorf("the status does not say what is wrong:\n%s", b.String())
		}
		l.goesOn("both hear the third", 2, i)
	}
	testnet.Await(t, "the third says so, too", func() bool {
		var b strings.Builder
		st := l.status(2)
		must(t, st.Print(&b))
		return st.Drops["name_clash"] > 0 || strings.Contains(b.String(), "name")
	})
}

// A syncd that stood still is heard when it goes on, and is told what it missed.
func TestStandstill(t *testing.T) {
	l := newDaemons(t, 2, envProcess)
	l.start(0)
	l.start(1)
	l.synced(0, 1)
	l.goesOn("d1 hears d2", 1, 0)
	must(t, l.procs[1].Process.Signal(syscall.SIGSTOP))
	testnet.Await(t, "d1 does not hear d2", func() bool { return l.status(0).Peers[0].State == "silent" })
	missed := l.status(0).Connections.Owned
	testnet.Await(t, "d1 goes on by itself", func() bool { return l.status(0).Connections.Owned > missed+10 })
	must(t, l.procs[1].Process.Signal(syscall.SIGCONT))
	l.goesOn("d1 hears d2 again", 1, 0)
	l.goesOn("d2 hears d1 again", 0, 1)
	l.same()
}

// same waits until both find their tables equal.
func (l *daemons) same() {
	l.t.Helper()
	testnet.Await(l.t, "the tables are equal", func() bool {
		for i := range 2 {
			st := l.status(i)
			if len(st.Peers) != 1 || st.Peers[0].DigestEqual == nil || !*st.Peers[0].DigestEqual || st.Peers[0].Missing > 0 {
				return false
			}
		}
		return true
	})
}

// Keys rotate at SIGHUP, one director after the other, while both tell news all
// the time: no datagram of either is refused, for a moment.
func TestKeysRotateAtSIGHUP(t *testing.T) {
	l := newDaemons(t, 2, envProcess)
	said := &diary{also: os.Stderr}
	l.log = said
	l.start(0)
	l.start(1)
	l.synced(0, 1)
	l.same()
	before := [2]Status{l.status(0), l.status(1)}
	for round, text := range rotation[1:] {
		for i := range 2 {
			must(t, os.WriteFile(filepath.Join(l.dir, "key"), []byte(text+"\n"), 0o600))
			must(t, l.procs[i].Process.Signal(syscall.SIGHUP))
			testnet.Await(t, fmt.Sprintf("d%d has read its keys in round %d", i+1, round+1), func() bool {
				return said.count("changed=[sync.key_file]") == 2*round+i+1
			})
			l.goesOn(fmt.Sprintf("d1 hears d2, round %d", round+1), 1, 0)
			l.goesOn(fmt.Sprintf("d2 hears d1, round %d", round+1), 0, 1)
		}
	}
	l.same()
	for i := range 2 {
		st, was := l.status(i), before[i].Peers[0]
		if p := st.Peers[0]; st.Drops["unknown_key"]+st.Drops["forged"] > 0 || p.Lost > was.Lost || p.Pulled > was.Pulled {
			t.Errorf("d%d: drops %v, %+v, before %+v", i+1, st.Drops, p, was)
		}
	}
}

// A diary keeps what several processes log.
type diary struct {
	also io.Writer
	mu   sync.Mutex
	text []byte
}

func (d *diary) Write(p []byte) (int, error) {
	d.mu.Lock()
	d.text = append(d.text, p...)
	d.mu.Unlock()
	return d.also.Write(p)
}

func (d *diary) count(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Count(d.text, []byte(what))
}
