package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"saru/internal/cli"
	"saru/internal/director"
	"saru/internal/seal"
	"saru/partition/nft"
)

// The tests run this binary as saru itself, in network namespaces joined by a
// bridge: d1 to d3 are directors that answer themselves, client sends.

const runMain = "SARU_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		os.Exit(mainWithoutLeaks())
	}
	os.Exit(m.Run())
}

// mainWithoutLeaks is main, and fails where main leaves a goroutine behind.
func mainWithoutLeaks() int {
	status := cli.Main(command())
	// signal.Notify's goroutine lives as long as the process.
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, "saru leaves goroutines:", err)
		return 1
	}
	return status
}

type lab struct {
	*testing.T
	dir   string
	sw    netns.NsHandle
	nodes []*node
	seen  *ledger
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

// plug connects ns with the switch by a veth pair, eth0 and port.
func (l *lab) plug(ns netns.NsHandle, port, addr string) {
	l.must(in(l.sw, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
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

func newLab(t *testing.T, directors int, extra string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	l := &lab{T: t, dir: t.TempDir()}
	if err := nft.Probe(); err != nil {
		t.Skip("this kernel: ", err)
	}
	l.sw = l.newNS()
	l.must(in(l.sw, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		return errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br))
	}))
	key := filepath.Join(l.dir, "key")
	l.must(os.WriteFile(key, []byte(seal.NewKey()+"\n"), 0o600))
	for i := range directors {
		n := &node{lab: l, name: fmt.Sprintf("d%d", i+1), addr: fmt.Sprintf("10.9.0.%d", i+2), ns: l.newNS()}
		l.plug(n.ns, n.name, n.addr)
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
lease = "300ms"
delay = "0s"
[control]
socket = %q
syncd = "/nonexistent"
%s
`, n.name, n.addr, key, l.dir+"/"+n.name+".sock", extra), 0o600))
		l.nodes = append(l.nodes, n)
		t.Cleanup(n.cleanUp)
	}
	return l
}

func (n *node) start() {
	n.Helper()
	exe, err := os.Executable()
	n.must(err)
	n.log, err = os.OpenFile(n.conf+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	n.cmd = exec.Command(exe, "--config", n.conf, "--log_facility", "-")
	n.cmd.Env = append(os.Environ(), runMain+"=1")
	n.cmd.Stderr, n.cmd.Stdout = n.log, n.log
	n.must(in(n.ns, n.cmd.Start))
	n.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(n.cmd, n.done)
}

func (n *node) signal(s syscall.Signal) { n.must(n.cmd.Process.Signal(s)) }

// wait waits for the daemon's end and returns its exit status.
func (n *node) wait() int {
	n.Helper()
	select {
	case <-n.done:
		n.log.Close()
		code := n.cmd.ProcessState.ExitCode()
		n.cmd = nil
		return code
	case <-time.After(20 * time.Second):
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

func (n *node) status() (*director.Status, error) {
	out, err := n.saru("status", "--json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var st director.Status
	return &st, json.Unmarshal([]byte(out), &st)
}

// until waits until the directors' shares are as f wants them.
func (l *lab) until(what string, f func(open map[string]int) bool) {
	l.Helper()
	start := time.Now()
	var open map[string]int
	for time.Since(start) < 30*time.Second {
		open = map[string]int{}
		for _, n := range l.nodes {
			if n.cmd == nil {
				continue
			}
			if st, err := n.status(); err == nil && st.State == "ready" {
				open[n.name] = st.Share.Buckets
			}
		}
		if f(open) {
			l.Logf("%s after %v: %v", what, time.Since(start).Round(10*time.Millisecond), open)
			return
		}
		time.Sleep(50 * time.Millisecond)
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

// A ledger is who accepted which datagram, when.
type ledger struct {
	mu   sync.Mutex
	sent map[uint32]time.Time
	port map[uint32]int
	got  map[uint32][]string
	at   map[uint32]time.Time
}

const service = 9000

// listen counts datagrams that n's kernel accepts for the service.
func (n *node) listen() {
	var c *net.UDPConn
	n.must(in(n.ns, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: service})
		return err
	}))
	n.must(c.SetReadBuffer(4 << 20))
	done := make(chan struct{})
	n.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			if k < 4 {
				continue
			}
			id := binary.BigEndian.Uint32(buf)
			n.seen.mu.Lock()
			n.seen.got[id] = append(n.seen.got[id], n.name)
			n.seen.at[id] = time.Now()
			n.seen.mu.Unlock()
		}
	}()
}

const ports = 200

// traffic sends numbered datagrams from many ports until stop is called.
func (l *lab) traffic() (stop func()) {
	l.seen = &ledger{sent: map[uint32]time.Time{}, port: map[uint32]int{}, got: map[uint32][]string{}, at: map[uint32]time.Time{}}
	for _, n := range l.nodes {
		n.listen()
	}
	ns := l.newNS()
	l.plug(ns, "client", "10.9.0.1")
	var conns []*net.UDPConn
	l.must(in(ns, func() error {
		for i := range ports {
			c, err := net.DialUDP("udp4", &net.UDPAddr{Port: 20000 + 7*i}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.100:9000")))
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	}))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for id := uint32(0); ; {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for range ports / 10 {
				p := int(id) % ports
				l.seen.mu.Lock()
				l.seen.sent[id], l.seen.port[id] = time.Now(), p
				l.seen.mu.Unlock()
				// Refused or unreachable only means that nobody accepts.
				_, _ = conns[p].Write(binary.BigEndian.AppendUint32(nil, id))
				id++
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
		time.Sleep(100 * time.Millisecond) // what is in flight
		for _, c := range conns {
			c.Close()
		}
		ns.Close()
	})
}

// gap returns the longest time that a port's datagrams were not accepted
// between the two times, and how many were lost.
func (s *ledger) gap(from, to time.Time) (longest time.Duration, lost, sent int, by map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by = map[string]int{}
	last := map[int]time.Time{}
	for id := uint32(0); int(id) < len(s.sent); id++ {
		at := s.sent[id]
		if at.Before(from) || at.After(to) {
			continue
		}
		sent++
		p := s.port[id]
		if len(s.got[id]) == 0 {
			lost++
			if _, down := last[p]; !down {
				last[p] = at
			}
			longest = max(longest, at.Sub(last[p]))
			continue
		}
		delete(last, p)
		by[s.got[id][0]]++
	}
	return longest, lost, sent, by
}

func (l *lab) neverTwice() {
	l.seen.mu.Lock()
	defer l.seen.mu.Unlock()
	n := 0
	for id, who := range l.seen.got {
		if len(who) > 1 {
			n++
			if n < 10 {
				l.Errorf("datagram %d was accepted by %v", id, who)
			}
		}
	}
	l.Logf("%d datagrams sent, %d accepted, %d of them more than once", len(l.seen.sent), len(l.seen.got), n)
}

func (l *lab) report(what string, since time.Time) {
	gap, lost, sent, by := l.seen.gap(since, time.Now().Add(-50*time.Millisecond))
	l.Logf("%-28s %d of %d datagrams lost, longest gap of a port %v, accepted %v", what+":", lost, sent, gap.Round(time.Millisecond), by)
}

func TestThreeDirectors(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	d1.start()
	l.until("one serves", l.shared(1))
	stop := l.traffic()
	defer stop()
	d2.start()
	d3.start()
	l.until("three share", l.shared(3))
	out, err := d2.saru("status")
	l.must(err)
	t.Logf("saru status:\n%s", out)

	mark := time.Now()
	time.Sleep(time.Second)
	l.report("steady", mark)
	if _, lost, sent, by := l.seen.gap(mark, time.Now().Add(-50*time.Millisecond)); lost > sent/20 || len(by) != 3 {
		t.Errorf("steady state loses %d of %d datagrams, accepted by %v", lost, sent, by)
	}

	mark = time.Now()
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("taken over after kill -9", l.shared(2))
	l.report("kill -9", mark)

	mark = time.Now()
	d2.start()
	l.until("back after a restart", l.shared(3))
	l.report("restart and rejoin", mark)

	mark = time.Now()
	d1.signal(syscall.SIGTERM)
	if code := d1.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.until("given away by SIGTERM", l.shared(2))
	l.report("SIGTERM of the master", mark)
	l.clean(d1)

	mark = time.Now()
	d1.start()
	l.until("back again", l.shared(3))
	l.report("join", mark)

	mark = time.Now()
	d3.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	l.report("SIGSTOP", mark)
	mark = time.Now()
	time.Sleep(500 * time.Millisecond)
	if _, _, _, by := l.seen.gap(mark, time.Now().Add(-50*time.Millisecond)); by["d3"] > 0 {
		t.Errorf("a stopped director accepted %d datagrams 1.5 s later", by["d3"])
	}
	mark = time.Now()
	d3.signal(syscall.SIGCONT)
	l.until("back after SIGCONT", l.shared(3))
	l.report("SIGCONT", mark)

	mark = time.Now()
	if out, err := d3.saru("drain"); err != nil {
		t.Errorf("drain: %v: %s", err, out)
	}
	if st, err := d3.status(); err != nil || st.Share.Buckets != 0 {
		t.Errorf("drain returned while %d buckets were open here (%v)", st.Share.Buckets, err)
	}
	l.until("drained", l.shared(2))
	l.report("drain", mark)
	if _, err := d3.saru("undrain"); err != nil {
		t.Error(err)
	}
	l.until("undrained", l.shared(3))

	mark = time.Now()
	l.must(in(d2.ns, func() error { return exec.Command("nft", "flush", "ruleset").Run() }))
	time.Sleep(200 * time.Millisecond)
	l.until("open again after a flush", l.shared(3))
	l.report("nft flush ruleset", mark)

	mark = time.Now()
	d1.signal(syscall.SIGKILL)
	d2.signal(syscall.SIGKILL)
	d1.wait()
	d2.wait()
	l.until("the last one has all", l.shared(1))
	l.report("two killed at once", mark)
	stop()
	l.neverTwice()
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

// Of two directors, the one without carrier stops and the other has all; with
// a ping node, so has the survivor of one that hears nothing.
func TestTwoDirectorsAndLinks(t *testing.T) {
	l := newLab(t, 2, "")
	d1 := l.nodes[0]
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		l.must(os.WriteFile(n.conf, bytes.Replace(b, []byte("[share]"), []byte("ping = [\"10.9.0.1\"]\n[share]"), 1), 0o600))
		n.start()
	}
	l.until("two share", l.shared(2))
	stop := l.traffic()
	defer stop()
	mark := time.Now()
	d1.setLink(false)
	l.until("the other has all", func(open map[string]int) bool { return open["d2"] == 256 && open["d1"] == 0 })
	l.report("cable pulled", mark)
	mark = time.Now()
	d1.setLink(true)
	l.until("two share again", l.shared(2))
	l.report("cable back", mark)

	// d1 sends and hears nothing.
	mark = time.Now()
	l.must(in(d1.ns, func() error {
		return exec.Command("nft", "add table netdev deaf; add chain netdev deaf in { type filter hook ingress device eth0 priority -500; policy drop; }").Run()
	}))
	l.until("the hearing one has all", func(open map[string]int) bool { return open["d2"] == 256 })
	l.report("deaf", mark)
	l.neverTwice()

	// It has concluded that it is alone. Until the first heartbeat after the
	// healing is acted on both accept, as PROTOCOL.md says of lan.
	mark = time.Now()
	l.must(in(d1.ns, func() error { return exec.Command("nft", "delete table netdev deaf").Run() }))
	time.Sleep(500 * time.Millisecond)
	l.until("two share once more", l.shared(2))
	l.report("hears again", mark)

	// d1 no longer reaches the ping node that d2 reaches.
	mark = time.Now()
	l.must(in(d1.ns, func() error {
		return exec.Command("nft", "add table inet blind; add chain inet blind in { type filter hook input priority -500; }; add rule inet blind in icmp type echo-reply drop").Run()
	}))
	l.until("who reaches more has all", func(open map[string]int) bool { return open["d2"] == 256 && open["d1"] == 0 })
	l.report("ping node out of reach", mark)
	stop()
	first, last, n := l.seen.twice()
	t.Logf("%d datagrams were accepted twice at the healing, within %v", n, last.Sub(first))
	if n > 0 && last.Sub(first) > 500*time.Millisecond {
		t.Errorf("two acceptors for %v after the healing", last.Sub(first))
	}
}

// twice returns when the first and the last datagram was sent that more than
// one director accepted, and how many there are.
func (s *ledger) twice() (first, last time.Time, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, who := range s.got {
		if len(who) < 2 {
			continue
		}
		if at := s.sent[id]; n == 0 || at.Before(first) {
			first = at
		}
		if at := s.sent[id]; at.After(last) {
			last = at
		}
		n++
	}
	return first, last, n
}

// Two directors and a witness: a director that reaches a majority has all, one
// that does not has nothing, and a split ends without a second acceptor.
func TestMajority(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, w := l.nodes[0], l.nodes[1], l.nodes[2]
	has := func(n1, n2 int) func(map[string]int) bool {
		return func(open map[string]int) bool { return open["d1"] == n1 && open["d2"] == n2 }
	}
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		quorum := "quorum = \"majority\"\nvoters = [\"d1\", \"d2\", \"d3\"]\n"
		text := strings.Replace(string(b), "[share]", quorum+"[share]", 1)
		if n == w {
			before, _, _ := strings.Cut(text, "[share]")
			_, after, _ := strings.Cut(text, "[timing]")
			text = before + "role = \"witness\"\n[timing]" + after
		}
		l.must(os.WriteFile(n.conf, []byte(text), 0o600))
	}
	d1.start()
	time.Sleep(2 * time.Second)
	if st, err := d1.status(); err != nil || st.Share.Buckets != 0 || st.Quorum.Need != 2 || st.Quorum.Have != 1 {
		t.Errorf("one voter of three: %+v, %v; want no bucket", st, err)
	}
	w.start()
	l.until("director and witness", has(256, 0))
	d2.start()
	l.until("two share", has(128, 128))
	out, err := w.saru("status")
	l.must(err)
	t.Logf("the witness's status:\n%s", out)
	stop := l.traffic()
	defer stop()

	mark := time.Now()
	d2.setLink(false)
	l.until("who reaches the witness has all", has(256, 0))
	l.report("split, with the witness", mark)
	mark = time.Now()
	d2.setLink(true)
	l.until("two share again", has(128, 128))
	l.report("healed", mark)

	w.signal(syscall.SIGKILL)
	w.wait()
	time.Sleep(time.Second)
	if st, err := d1.status(); err != nil || st.Share.Buckets != 128 {
		t.Errorf("two of three voters left: %+v, %v; want the share as it was", st, err)
	}
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("one voter of three has nothing", has(0, 0))
	w.start()
	l.until("the witness is back", has(256, 0))
	stop()
	l.neverTwice()
}

// While moves are frozen a newcomer gets nothing, and a failure still moves
// what it must.
func TestFreeze(t *testing.T) {
	l := newLab(t, 2, "")
	d1, d2 := l.nodes[0], l.nodes[1]
	d1.start()
	l.until("one serves", l.shared(1))
	if out, err := d1.saru("drain"); err == nil || !strings.Contains(out, "no other director is ready") {
		t.Errorf("drain without a taker: %v, %q", err, out)
	}
	if st, err := d1.status(); err != nil || st.Share.Buckets != 256 {
		t.Errorf("after a drain without a taker: %+v, %v; want all buckets here", st, err)
	}
	if out, err := d1.saru("undrain"); err != nil {
		t.Errorf("undrain: %v, %q", err, out)
	}
	if out, err := d1.saru("freeze"); err != nil {
		t.Errorf("freeze: %v, %q", err, out)
	}
	d2.start()
	l.until("the newcomer is ready and knows", func(map[string]int) bool {
		st, err := d2.status()
		return err == nil && st.State == "ready" && st.Frozen
	})
	time.Sleep(time.Second)
	if st, err := d2.status(); err != nil || st.Share.Buckets != 0 {
		t.Errorf("frozen: the newcomer has %+v, %v; want nothing", st, err)
	}
	if out, err := d2.saru("unfreeze"); err != nil {
		t.Errorf("unfreeze: %v, %q", err, out)
	}
	l.until("two share", l.shared(2))
	if out, err := d1.saru("freeze"); err != nil {
		t.Errorf("freeze: %v, %q", err, out)
	}
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("a failure moves the share", func(open map[string]int) bool { return open["d2"] == 256 })
}

// Bad input ends with status 2 and one line, and leaves the kernel alone.
func TestRefusals(t *testing.T) {
	l := newLab(t, 1, "")
	d := l.nodes[0]
	refused := func(what, says string) {
		t.Helper()
		out, err := d.saru("run", "--log_facility", "-")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, says) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %v, %q; want status 2 and one line with %q", what, err, out, says)
		}
	}
	good, err := os.ReadFile(d.conf)
	l.must(err)
	write := func(old, now string) {
		l.must(os.WriteFile(d.conf, bytes.Replace(good, []byte(old), []byte(now), 1), 0o600))
	}
	write(`interface = "eth0"`, `interface = "eth7"`)
	refused("an interface that is not there", `share.interface = "eth7"`)
	write(`target = "local"`, `target = "local"`+"\ncolour = 1")
	refused("an unknown key", `"share.colour"`)
	write(`target = "local"`, `target = "local"`)
	l.must(os.Chmod(filepath.Join(l.dir, "key"), 0o640))
	refused("an open key file", "chmod 600")
	if out, err := d.saru("check"); err == nil || !strings.Contains(out, "chmod 600") {
		t.Errorf("check: %v, %q", err, out)
	}
	l.must(os.Chmod(filepath.Join(l.dir, "key"), 0o600))
	l.clean(d)

	d.start()
	l.until("serves", l.shared(1))
	refused("a second saru", "another saru answers")
	write(d.name+".sock", "other.sock")
	refused("a second saru with another socket", "")
	write("", "")
	if st, err := d.status(); err != nil || st.Share.Buckets != 256 {
		t.Errorf("the first saru after a second was refused: %+v, %v", st, err)
	}
	if out, err := d.saru("check"); err != nil || !strings.Contains(out, "nftables       yes") {
		t.Errorf("check: %v, %q", err, out)
	}
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.clean(d)
}
