package usersync_test

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"saru/ipvs"
)

// The tests on a real kernel need one with IPVS, root, and the module built
// for that kernel, which kmod/check.sh leaves below .cache: run them in the
// lab's guests. Each test runs in a process of its own in a new network
// namespace, the director's; a client's and a real server's hang on it.

const envInside = "SARU_TEST_INSIDE"

var (
	loads = flag.Int("usync.loads", 25, "how often TestLoadUnderTraffic loads and unloads the module")
	smp   = flag.Bool("usync.smp", false, "do so on all processors of an emulator too")
)

const (
	vip      = "10.82.0.100"
	clientIP = "10.82.1.2"
	serverIP = "10.82.2.2"
	absentIP = "10.82.2.99" // nobody has it
)

// Indexes into the protocol's table of states (include/net/ip_vs.h).
const (
	tcpEstablished = 1
	tcpSynRecv     = 3
	tcpFinWait     = 4
	tcpTimeWait    = 5
	tcpClose       = 6
)

// The process's first thread stays the main goroutine's: in takes threads for
// other namespaces, and the first one's is what /proc/self/net shows.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if os.Getenv(envProbe) != "" {
		probe()
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// moduleFile is the module built for the running kernel, or "".
func moduleFile() string {
	if f := os.Getenv("SARU_KMOD"); f != "" {
		return f
	}
	f := filepath.Join("..", "..", ".cache", "kmod", os.Getenv("SARU_LAB_KERNEL"), "ip_vs_user_sync.ko")
	if _, err := os.Stat(f); err != nil || os.Getenv("SARU_LAB_KERNEL") == "" {
		return ""
	}
	return f
}

func command(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func insmod() error {
	if err := command("insmod", moduleFile()); err != nil && !strings.Contains(err.Error(), "File exists") {
		return err
	}
	return nil
}

// inside returns true in the process that runs the test proper, with the
// module loaded. In the other it starts that process, passes its output on and
// returns false.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envInside) == t.Name() {
		must(t, insmod())
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c, err := ipvs.Dial()
	if errors.Is(err, ipvs.ErrNotSupported) {
		t.Skipf("this kernel has no IPVS: %v", err)
	}
	must(t, err)
	c.Close()
	if moduleFile() == "" {
		t.Skip("no module for this kernel: run kmod/check.sh, or set SARU_KMOD")
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout="+patience(170*time.Second).String(),
		fmt.Sprintf("-usync.loads=%d", *loads), fmt.Sprintf("-usync.smp=%v", *smp), fmt.Sprintf("-usync.allocations=%d", *allocations))
	cmd.Env = append(os.Environ(), envInside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("see above")
	}
	return false
}

// patience is how long to wait on this kernel for what takes at most d on an
// emulated one: those with all checks are several times slower.
func patience(d time.Duration) time.Duration {
	if strings.HasSuffix(os.Getenv("SARU_LAB_KERNEL"), "-debug") {
		return 4 * d
	}
	return d
}

// in runs fn on a thread in the namespace.
func in(ns netns.NsHandle, fn func() error) error {
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine: it is not for others.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func newNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		done <- err
	}()
	must(t, <-done)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// A site is a director that translates addresses (masq) between a client and
// a real server.
type site struct {
	client, server netns.NsHandle
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{newNamespace(t), newNamespace(t)}
	must(t, command("ip", "link", "set", "lo", "up"))
	for i, ns := range []netns.NsHandle{s.client, s.server} {
		here, there := fmt.Sprintf("usync%d", i), fmt.Sprintf("usyncp%d", i)
		net := fmt.Sprintf("10.82.%d.", i+1)
		must(t, command("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))))
		must(t, command("ip", "addr", "add", net+"1/24", "dev", here))
		must(t, command("ip", "link", "set", here, "up"))
		must(t, in(ns, func() error {
			return errors.Join(
				command("ip", "link", "set", "lo", "up"),
				command("ip", "addr", "add", net+"2/24", "dev", there),
				command("ip", "link", "set", there, "up"),
				command("ip", "route", "add", "default", "via", net+"1"),
			)
		}))
	}
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	must(t, command("ip", "addr", "add", vip+"/32", "dev", "lo"))
	services(t)
	return s
}

func services(t testing.TB) {
	t.Helper()
	for _, args := range []string{
		"-A -t %v:80 -s rr", "-a -t %v:80 -r " + serverIP + ":8080 -m",
		"-A -t %v:81 -s rr", "-a -t %v:81 -r " + absentIP + ":8080 -m",
		"-A -t %v:82 -s rr -p 90", "-a -t %v:82 -r " + serverIP + ":8080 -m",
		"-A -u %v:53 -s rr", "-a -u %v:53 -r " + serverIP + ":5353 -m",
		"-A -u %v:54 -s rr -o", "-a -u %v:54 -r " + serverIP + ":5353 -m",
	} {
		must(t, command(append([]string{"ipvsadm"}, strings.Fields(fmt.Sprintf(args, vip))...)...))
	}
}

// serve accepts and hands the connections over.
func (s *site) serve(t testing.TB) <-chan *net.TCPConn {
	t.Helper()
	var ln net.Listener
	must(t, in(s.server, func() (err error) { ln, err = net.Listen("tcp4", serverIP+":8080"); return err }))
	conns := make(chan *net.TCPConn, 1000)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(conns)
				return
			}
			conns <- c.(*net.TCPConn)
		}
	})
	t.Cleanup(func() { ln.Close(); accepting.Wait() })
	return conns
}

func (s *site) dial(t testing.TB, network, port string, wait time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	err := in(s.client, func() (err error) { c, err = net.DialTimeout(network, vip+":"+port, wait); return err })
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// udp sends one datagram from the client, of the given port.
func (s *site) udp(t testing.TB, from, to int) {
	t.Helper()
	must(t, in(s.client, func() error {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(clientIP), Port: from}, &net.UDPAddr{IP: net.ParseIP(vip), Port: to})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	}))
}
