package syncd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"saru/internal/config"
	"saru/internal/control"
	"saru/ipvs"
)

// The test of this file needs a kernel with IPVS, and ipvsadm. Each director
// is a process of its own, this test's program, in a network namespace.

const envDirector = "SYNCD_TEST_DIRECTOR"

// director is the daemon with the configuration at path.
func director(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := Load(path)
	if err == nil {
		err = Run(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), s, Options{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return config.ExitStatus(err)
}

const testVIP = "10.97.1.100"

// A realLAN is two directors, a client and a real server, forwarding gate.
type realLAN struct {
	*lan
	dir    string
	before [2]string // the directors' sysctls
	procs  [2]*exec.Cmd
	more   string // of the configuration, appended
}

const (
	nodeClient = 2
	nodeServer = 3
)

func newRealLAN(t *testing.T) *realLAN {
	if c, err := ipvs.Dial(); err == nil {
		c.Close()
	} else if errors.Is(err, ipvs.ErrNotSupported) {
		t.Skipf("this kernel has no IPVS: %v", err)
	} else {
		t.Skipf("cannot speak with IPVS: %v", err)
	}
	if _, err := exec.LookPath("ipvsadm"); err != nil {
		t.Skip("needs ipvsadm")
	}
	l := &realLAN{lan: newLAN(t, 4), dir: t.TempDir()}
	must(t, os.WriteFile(filepath.Join(l.dir, "key"), []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
	for _, i := range []int{0, 1, nodeServer} {
		l.run(i, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
		l.run(i, "ip", "addr", "add", testVIP+"/32", "dev", "lo")
	}
	for i := range 2 {
		l.run(i, "ipvsadm", "-A", "-t", testVIP+":80", "-s", "rr")
		l.run(i, "ipvsadm", "-a", "-t", testVIP+":80", "-r", "10.97.0.4:80", "-g")
		l.before[i] = l.run(i, "sysctl", "net.ipv4.vs")
	}
	l.run(nodeServer, "ip", "route", "add", "10.97.1.0/24", "dev", "eth0")
	return l
}

// run runs a command in a node and returns its output.
func (l *realLAN) run(i int, args ...string) string {
	l.t.Helper()
	var out []byte
	err := within(l.nodes[i], func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (l *realLAN) socket(i int) string { return filepath.Join(l.dir, fmt.Sprintf("d%d.sock", i+1)) }

func (l *realLAN) start(i int) {
	l.t.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("d%d.toml", i+1))
	must(l.t, os.WriteFile(path, fmt.Appendf(nil, "[sync]\nnode = \"d%d\"\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\n%s",
		i+1, filepath.Join(l.dir, "key"), l.socket(i), l.more), 0o600))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envDirector+"="+path)
	cmd.Stderr = os.Stderr
	must(l.t, within(l.nodes[i], cmd.Start))
	l.procs[i] = cmd
	l.t.Cleanup(func() { l.stop(i) })
}

func (l *realLAN) stop(i int) {
	if cmd := l.procs[i]; cmd != nil {
		l.procs[i] = nil
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("d%d: %v", i+1, err)
		}
	}
}

func (l *realLAN) status(i int) (st Status) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	control.NewClient(l.socket(i)).Get(ctx, "/status", &st) // not there yet: not synced
	return st
}

// via makes the client send to director i.
func (l *realLAN) via(i int) {
	l.run(nodeClient, "ip", "route", "replace", testVIP+"/32", "via", fmt.Sprintf("10.97.0.%d", i+1))
}

// serve echoes lines.
func (l *realLAN) serve() {
	var ln net.Listener
	must(l.t, within(l.nodes[nodeServer], func() (err error) { ln, err = net.Listen("tcp4", testVIP+":80"); return err }))
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
}

func (l *realLAN) dial() net.Conn {
	l.t.Helper()
	var c net.Conn
	must(l.t, within(l.nodes[nodeClient], func() (err error) { c, err = net.DialTimeout("tcp4", testVIP+":80", 30*time.Second); return err }))
	l.t.Cleanup(func() { c.Close() })
	return c
}

func echo(t *testing.T, c net.Conn, line string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintln(c, line)
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != line+"\n" {
		t.Errorf("sent %q, got %q, %v", line, got, err)
	}
}

func TestConnectionsOutliveTheirDirector(t *testing.T) {
	l := newRealLAN(t)
	l.serve()
	l.via(0)
	for i := range 2 {
		l.start(i)
		await(t, fmt.Sprintf("d%d synced", i+1), func() bool { return l.status(i).Synced })
	}
	const many = 20
	var conns []net.Conn
	for range many {
		conns = append(conns, l.dial())
		echo(t, conns[len(conns)-1], "by d1")
	}
	await(t, "d2's kernel has them", func() bool {
		return strings.Count(l.run(1, "ipvsadm", "-Lnc"), "ESTABLISHED") == many
	})
	l.via(1)
	for _, c := range conns {
		echo(t, c, "by d2")
	}
	for _, c := range conns[:many/2] {
		c.Close()
	}
	await(t, "d1's kernel saw half of them close", func() bool {
		return strings.Count(l.run(0, "ipvsadm", "-Lnc"), "FIN_WAIT") == many/2
	})

	// d1 restarts: its entries lost their real server and are bound anew.
	l.stop(0)
	l.run(0, "ipvsadm", "-C")
	l.run(0, "ipvsadm", "-A", "-t", testVIP+":80", "-s", "rr")
	l.run(0, "ipvsadm", "-a", "-t", testVIP+":80", "-r", "10.97.0.4:80", "-g")
	l.start(0)
	await(t, "d1 synced again", func() bool { return l.status(0).Synced })
	l.via(0)
	for _, c := range conns[many/2:] {
		echo(t, c, "by d1 again")
	}
	for i := range 2 {
		st := l.status(i)
		if st.Kernel.Drops != 0 || len(st.Peers) != 1 || st.Connections.Mirror != many {
			t.Errorf("d%d: %+v", i+1, st)
		}
		l.stop(i)
		l.asBefore(i)
	}
}

// asBefore checks that a clean stop left nothing.
func (l *realLAN) asBefore(i int) {
	t := l.t
	t.Helper()
	if after := l.run(i, "sysctl", "net.ipv4.vs"); after != l.before[i] {
		t.Errorf("d%d: sysctls before\n%s\nafter\n%s", i+1, l.before[i], after)
	}
	if daemons := l.run(i, "ipvsadm", "-L", "--daemon"); strings.TrimSpace(daemons) != "" {
		t.Errorf("d%d: sync threads are left: %s", i+1, daemons)
	}
	if _, err := handle(t, l.nodes[i]).LinkByName("syncd0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("d%d: the tap is left: %v", i+1, err)
	}
	for _, f := range []string{l.socket(i), strings.TrimSuffix(l.socket(i), ".sock") + ".tap.json"} {
		if _, err := os.Stat(f); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
}
