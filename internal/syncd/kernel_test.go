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
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"saru/internal/testnet"
	"saru/ipvs"
)

// The test of this file needs a kernel with IPVS, and ipvsadm. Each director
// is a process of its own, this test's program, in a network namespace.

const envDirector = "SYNCD_TEST_DIRECTOR"

// runDirector is the whole daemon.
func runDirector(ctx context.Context, path string) error {
	s, err := Load(path)
	if err != nil {
		return err
	}
	return Run(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), s, Options{})
}

const testVIP = "10.97.1.100"

// A realLAN is two directors, a client and a real server, forwarding gate.
type realLAN struct {
	*daemons
	before [2]string // the directors' sysctls
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
	l := &realLAN{daemons: newDaemons(t, 4, envDirector)}
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
	err := testnet.Within(l.Nodes[i], func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// via makes the client send to director i.
func (l *realLAN) via(i int) {
	l.run(nodeClient, "ip", "route", "replace", testVIP+"/32", "via", fmt.Sprintf("10.97.0.%d", i+1))
}

// serve echoes lines.
func (l *realLAN) serve() {
	var ln net.Listener
	must(l.t, testnet.Within(l.Nodes[nodeServer], func() (err error) { ln, err = net.Listen("tcp4", testVIP+":80"); return err }))
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
	must(l.t, testnet.Within(l.Nodes[nodeClient], func() (err error) { c, err = net.DialTimeout("tcp4", testVIP+":80", 30*time.Second); return err }))
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
		l.synced(i)
	}
	const many = 20
	var conns []net.Conn
	for range many {
		conns = append(conns, l.dial())
		echo(t, conns[len(conns)-1], "by d1")
	}
	testnet.Await(t, "d2's kernel has them", func() bool {
		return strings.Count(l.run(1, "ipvsadm", "-Lnc"), "ESTABLISHED") == many
	})
	l.via(1)
	for _, c := range conns {
		echo(t, c, "by d2")
	}
	for _, c := range conns[:many/2] {
		c.Close()
	}
	testnet.Await(t, "d1's kernel saw half of them close", func() bool {
		return strings.Count(l.run(0, "ipvsadm", "-Lnc"), "FIN_WAIT") == many/2
	})

	// d1 restarts: its entries lost their real server and are bound anew.
	l.stop(0)
	l.run(0, "ipvsadm", "-C")
	l.run(0, "ipvsadm", "-A", "-t", testVIP+":80", "-s", "rr")
	l.run(0, "ipvsadm", "-a", "-t", testVIP+":80", "-r", "10.97.0.4:80", "-g")
	l.start(0)
	testnet.Await(t, "d1 synced again", func() bool { return l.status(0).Synced })
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
	if _, err := testnet.Handle(t, l.Nodes[i]).LinkByName("syncd0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("d%d: the tap is left: %v", i+1, err)
	}
	for _, f := range []string{l.socket(i), strings.TrimSuffix(l.socket(i), ".sock") + ".tap.json"} {
		if _, err := os.Stat(f); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
}
