package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/config"
	"saru/internal/control"
	"saru/internal/task"
	"saru/syncproto/peer"
)

// The tests of this file run whole processes, this test's program, in network
// namespaces; all of syncd but the kernel, which is a fake that tells of a new
// connection ten times a second.

const envProcess = "SYNCD_TEST_PROCESS"

// process is syncd with the configuration at path, on a fake kernel.
func process(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := runProcess(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return config.ExitStatus(err)
}

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
	return task.Run(ctx, nil, e, ctl, traffic)
}

// A processLAN is a LAN with a syncd on each node.
type processLAN struct {
	*lan
	dir   string
	procs []*exec.Cmd
}

func newProcessLAN(t *testing.T, nodes int) *processLAN {
	l := &processLAN{lan: newLAN(t, nodes), dir: t.TempDir(), procs: make([]*exec.Cmd, nodes)}
	must(t, os.WriteFile(filepath.Join(l.dir, "key"), []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
	return l
}

func (l *processLAN) socket(i int) string { return filepath.Join(l.dir, fmt.Sprintf("n%d.sock", i)) }

func (l *processLAN) start(i int, name string) {
	l.t.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("n%d.toml", i))
	must(l.t, os.WriteFile(path, fmt.Appendf(nil, "[sync]\nnode = %q\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\n",
		name, filepath.Join(l.dir, "key"), l.socket(i)), 0o600))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envProcess+"="+path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(l.t, within(l.nodes[i], cmd.Start))
	l.procs[i] = cmd
	l.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("node %d: %v", i, err)
		}
	})
}

func (l *processLAN) status(i int) (st Status) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	control.NewClient(l.socket(i)).Get(ctx, "/status", &st) // not there yet: not synced
	return st
}

// goesOn waits until news of node from reaches node to that was made after the
// call.
func (l *processLAN) goesOn(what string, from, to int) {
	l.t.Helper()
	already := l.status(from).Connections.Owned
	await(l.t, what, func() bool {
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
	l := newProcessLAN(t, 2)
	l.start(0, "d1")
	l.start(1, "d2")
	for i := range 2 {
		await(t, "synced", func() bool { return l.status(i).Synced })
	}
	l.goesOn("d1 hears d2", 1, 0)

	nh := handle(t, l.nodes[1])
	eth, err := nh.LinkByName("eth0")
	must(t, err)
	must(t, nh.LinkSetDown(eth))
	await(t, "d1 hears no d2 whose link is down", func() bool { return l.status(0).Peers[0].State == "silent" })
	must(t, nh.LinkSetUp(eth))
	l.goesOn("d1 hears d2 after its link was down", 1, 0)
	l.goesOn("d2 hears d1 after its link was down", 0, 1)

	must(t, nh.LinkDel(eth))
	await(t, "d1 hears no d2 that has no interface", func() bool { return l.status(0).Peers[0].State == "silent" })
	// Longer than it takes to notice.
	await(t, "d2 goes on by itself", func() bool {
		before := l.status(1).Connections.Owned
		time.Sleep(2 * time.Second)
		return l.status(1).Connections.Owned > before
	})
	l.plug(handle(t, l.bridge), 1)
	l.goesOn("d1 hears d2 on its new interface", 1, 0)
	l.goesOn("d2 hears d1 on its new interface", 0, 1)
	await(t, "the tables are equal", func() bool {
		p := l.status(0).Peers[0]
		return p.DigestEqual != nil && *p.DigestEqual
	})
}

// Two directors of one name keep serving their own connections, hear a third
// one, and say what is wrong.
func TestTwoOfOneName(t *testing.T) {
	l := newProcessLAN(t, 3)
	l.start(0, "d1")
	l.start(1, "d1")
	l.start(2, "d3")
	for i := range 3 {
		await(t, "synced", func() bool { return l.status(i).Synced })
	}
	for i := range 2 {
		await(t, "the clash is told", func() bool { return l.status(i).Drops["name_clash"] > 0 })
		var b strings.Builder
		st := l.status(i)
		must(t, st.Print(&b))
		if !strings.Contains(b.String(), "name") {
			t.Errorf("the status does not say what is wrong:\n%s", b.String())
		}
		l.goesOn("both hear the third", 2, i)
	}
	await(t, "the third says so, too", func() bool {
		var b strings.Builder
		st := l.status(2)
		must(t, st.Print(&b))
		return st.Drops["name_clash"] > 0 || strings.Contains(b.String(), "name")
	})
}
