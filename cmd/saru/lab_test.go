package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"saru/internal/cli"
	"saru/internal/control"
	"saru/internal/director"
	"saru/internal/seal"
	"saru/partition/nft"
	"saru/test/datagrams"
	"saru/test/lab/guest"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// emulated says that this is a guest: times there are worth little.
var emulated = os.Getenv(guest.EnvGuest) != ""

// pace is what the machine can keep up with. An emulated one stands still for
// seconds while the real one is busy, and an answer costs it as much as a
// hundred datagrams.
var pace = func() (p struct {
	lease    time.Duration
	rate     int           // datagrams a second of a client
	look     time.Duration // between two questions
	patience time.Duration // for what must come
	elements int           // of a large set
},
) {
	p.lease, p.rate, p.look, p.patience, p.elements = 300*time.Millisecond, 1500, 50*time.Millisecond, time.Minute, 200_000
	if emulated {
		p.lease, p.rate, p.look, p.patience, p.elements = 6*time.Second, 100, time.Second, 2*time.Minute, 20_000
	}
	return p
}()

type lab struct {
	*testing.T
	dir   string
	sw    netns.NsHandle
	nodes []*node
	seen  *datagrams.Ledger
}

type node struct {
	*lab
	name string
	addr string
	ns   netns.NsHandle
	conf string
	cmd  *exec.Cmd
	log  *os.File
	done chan error

	paused  bool // by SIGSTOP: it answers nobody
	stopped bool // so it was in this life: its ticks were late for that
}

// in runs f on a thread of its own in namespace ns.
func in(ns netns.NsHandle, f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		if err := netns.Set(ns); err != nil {
			errs <- err
			return
		}
		errs <- f()
	}()
	return <-errs
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) newNS() (ns netns.NsHandle) {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		errs <- err
	}()
	if err := <-errs; errors.Is(err, os.ErrPermission) {
		l.Skip("needs root: ", err)
	} else {
		l.must(err)
	}
	l.Cleanup(func() { ns.Close() })
	l.must(in(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	return ns
}

// plug connects ns with a bridge of the switch by a veth pair, eth0 and port.
func (l *lab) plug(ns netns.NsHandle, bridge, port, addr string) {
	l.must(in(l.sw, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(veth, br), netlink.LinkSetUp(veth))
	}))
	l.must(in(ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr + "/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(eth, a), netlink.LinkSetUp(eth))
	}))
}

// bridge makes a bridge of the switch.
func (l *lab) bridge(name string) {
	l.Helper()
	l.must(in(l.sw, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		return errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br))
	}))
}

func newLab(t *testing.T, directors int, extra string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	l := &lab{T: t, dir: t.TempDir(), seen: &datagrams.Ledger{Flows: ports}}
	if err := nft.Probe(); err != nil {
		t.Skip("this kernel: ", err)
	}
	l.sw = l.newNS()
	l.bridge("br0")
	key := filepath.Join(l.dir, "key")
	l.must(os.WriteFile(key, []byte(seal.NewKey()+"\n"), 0o600))
	for i := range directors {
		n := &node{lab: l, name: fmt.Sprintf("d%d", i+1), addr: fmt.Sprintf("10.9.0.%d", i+2), ns: l.newNS()}
		l.plug(n.ns, "br0", n.name, n.addr)
		n.conf = filepath.Join(l.dir, n.name+".toml")
		l.must(os.WriteFile(n.conf, fmt.Appendf(nil, `
[cluster]
name = "lab"
node = %q
bind = %q
join = ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
key_file = %q
[share]
addresses = ["10.9.0.100"]
interface = "eth0"
target = "local"
[timing]
lease = %q
delay = "0s"
[control]
socket = %q
syncd = "/nonexistent"
%s
`, n.name, n.addr, key, pace.lease, l.dir+"/"+n.name+".sock", extra), 0o600))
		l.nodes = append(l.nodes, n)
		t.Cleanup(n.cleanUp)
	}
	return l
}

func (n *node) start() {
	n.Helper()
	n.startWith(nil)
}

// startWith starts the daemon with more of an environment, and by another
// program that runs what its arguments end with.
func (n *node) startWith(env []string, by ...string) {
	n.Helper()
	exe, err := os.Executable()
	n.must(err)
	n.log, err = os.OpenFile(n.conf+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	argv := append(by, exe, "--config", n.conf, "--log_facility", "-")
	n.cmd = exec.Command(argv[0], argv[1:]...)
	n.cmd.Env = append(append(os.Environ(), runMain+"=1"), env...)
	n.cmd.Stderr, n.cmd.Stdout = n.log, n.log
	n.must(in(n.ns, n.cmd.Start))
	n.done, n.paused, n.stopped = make(chan error, 1), false, false
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(n.cmd, n.done)
}

// wait waits for the daemon's end and returns its exit status.
func (n *node) wait() int {
	n.Helper()
	select {
	case <-n.done:
		n.log.Close()
		code := n.cmd.ProcessState.ExitCode()
		n.cmd = nil
		return code
	case <-time.After(pace.patience / 2):
		n.Fatalf("%s did not end", n.name)
		return -1
	}
}

func (n *node) cleanUp() {
	if n.cmd != nil {
		n.cmd.Process.Signal(syscall.SIGCONT)
		n.cmd.Process.Kill()
		n.wait()
	}
	if n.Failed() {
		b, _ := os.ReadFile(n.conf + ".log")
		n.Logf("log of %s:\n%s", n.name, b)
	}
	n.ns.Close()
}

// saru runs a subcommand beside the daemon.
func (n *node) saru(args ...string) (string, error) {
	exe, err := os.Executable()
	n.must(err)
	cmd := exec.Command(exe, append(args, "--config", n.conf)...)
	cmd.Env = append(os.Environ(), runMain+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = in(n.ns, cmd.Run)
	return out.String(), err
}

// status asks the daemon's socket, as 'saru status --json' does: a process for
// each question would take the processor from the daemons.
func (n *node) status() (*director.Status, error) {
	ctx, cancel := context.WithTimeout(n.Context(), cli.AnswerWithin)
	defer cancel()
	var st director.Status
	return &st, control.NewClient(n.dir+"/"+n.name+".sock").Get(ctx, "/status", &st)
}

// until waits until the directors' shares are as f wants them.
func (l *lab) until(what string, f func(open map[string]int) bool) {
	l.Helper()
	start := time.Now()
	var open map[string]int
	for time.Since(start) < pace.patience {
		open = map[string]int{}
		for _, n := range l.nodes {
			if n.cmd == nil || n.paused {
				continue
			}
			if st, err := n.status(); err == nil && (st.State == "ready" || st.State == "degraded") {
				open[n.name] = st.Share.Buckets
			}
		}
		if f(open) {
			l.Logf("%s after %v: %v", what, time.Since(start).Round(10*time.Millisecond), open)
			return
		}
		time.Sleep(pace.look)
	}
	l.Fatalf("not %s: %v", what, open)
}

func (l *lab) shared(k int) func(map[string]int) bool {
	return func(open map[string]int) bool {
		sum := 0
		for _, b := range open {
			if b == 0 {
				return false
			}
			sum += b
		}
		return len(open) == k && sum == 256
	}
}

// clean asserts that nothing of ours is left in n's kernel.
func (l *lab) clean(n *node) {
	l.Helper()
	l.must(in(n.ns, func() error {
		out, err := exec.Command("nft", "list", "tables").CombinedOutput()
		if err != nil || strings.Contains(string(out), "saru") {
			l.Errorf("tables left: %s %v", out, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(lo, unix.AF_INET)
		for _, a := range addrs {
			if a.IP.String() == "10.9.0.100" {
				l.Errorf("%v left on lo", a)
			}
		}
		return err
	}))
}

// setLink takes a director's port of the switch down or up.
func (n *node) setLink(up bool) {
	n.must(in(n.sw, func() error {
		port, err := netlink.LinkByName(n.name)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(port)
		}
		return netlink.LinkSetDown(port)
	}))
}

// start starts all directors and waits until they share.
func (l *lab) start() {
	l.Helper()
	for _, n := range l.nodes {
		n.start()
	}
	l.until("all share", l.shared(len(l.nodes)))
}
