package usersync_test

import (
	"context"
	"errors"
	"flag"
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

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// The tests of this file need a kernel with IPVS, root, and the module built
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
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout=170s", fmt.Sprintf("-usync.loads=%d", *loads), fmt.Sprintf("-usync.smp=%v", *smp))
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

// A recorder keeps what a Listener hears.
type recorder struct {
	mu     sync.Mutex
	events []usersync.Record
	delays []time.Duration
	lost   []error
}

func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

func (r *recorder) handler() usersync.Handler {
	return usersync.Handler{
		Event: func(e *usersync.Record) {
			r.mu.Lock()
			defer r.mu.Unlock()
			c := *e
			c.PEData, c.Seq = nil, nil
			r.events = append(r.events, c)
			r.delays = append(r.delays, time.Duration(now()-e.Stamp))
		},
		Lost: func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lost = append(r.lost, err)
		},
	}
}

// of returns the events of the client's port and the virtual one so far.
func (r *recorder) of(cport, vport uint16) []usersync.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []usersync.Record
	for _, e := range r.events {
		if e.Client.Port() == cport && e.Virtual.Port() == vport {
			got = append(got, e)
		}
	}
	return got
}

// listen records until the test ends.
func listen(t testing.TB) *recorder {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	r := &recorder{}
	l, err := usersync.Listen(r.handler())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("listener: %v", err)
		}
		must(t, l.Close())
		goleak.VerifyNone(t, leaks)
		for _, err := range r.lost {
			t.Errorf("lost: %v", err)
		}
	})
	return r
}

func dialModule(t testing.TB) *usersync.Client {
	t.Helper()
	c, err := usersync.Dial()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// await returns the first event of the connection that the condition holds
// for.
func (r *recorder) await(t testing.TB, what string, cport, vport uint16, cond func(*usersync.Record) bool) usersync.Record {
	t.Helper()
	var found usersync.Record
	defer func() {
		if t.Failed() {
			for _, e := range r.of(cport, vport) {
				t.Logf("%+v", e)
			}
		}
	}()
	eventually(t, what, func() bool {
		for _, e := range r.of(cport, vport) {
			if cond(&e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func kind(k usersync.Kind) func(*usersync.Record) bool {
	return func(e *usersync.Record) bool { return e.Kind == k }
}

func state(s uint16) func(*usersync.Record) bool {
	return func(e *usersync.Record) bool { return e.State == s && e.Kind != usersync.KindExpired }
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

// TestLifeOfAConnection: each step of a TCP connection is told, with its
// fields, and its end.
func TestLifeOfAConnection(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	accepted := s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "80", 10*time.Second)
	must(t, err)
	from := port(c.LocalAddr())

	first := r.await(t, "new", from, 80, kind(usersync.KindNew))
	want := conntable.Key{
		Client:   netip.AddrPortFrom(netip.MustParseAddr(clientIP), from),
		Virtual:  netip.MustParseAddrPort(vip + ":80"),
		Protocol: 6,
	}
	if first.Key != want || first.Dest != netip.MustParseAddrPort(serverIP+":8080") || !first.Bound ||
		first.Flags&conntable.FlagFwdMask != conntable.FlagFwdMasq || first.Flags&conntable.FlagSync != 0 {
		t.Errorf("new: %+v", first)
	}
	// Established is told with it if that follows within a millisecond.
	if first.State != tcpSynRecv && first.State != tcpEstablished || first.Remaining.Truncate(time.Second) != first.Timeout {
		t.Errorf("new: %+v", first)
	}
	est := r.await(t, "established", from, 80, state(tcpEstablished))
	if est.Timeout != 900*time.Second || est.Cookie != first.Cookie || est.Stamp < first.Stamp || est.Flags&conntable.FlagInactive != 0 {
		t.Errorf("established: %+v", est)
	}
	(<-accepted).Close()
	c.Close()
	fin := r.await(t, "closing", from, 80, func(e *usersync.Record) bool { return e.State == tcpFinWait || e.State == tcpTimeWait })
	if fin.Flags&conntable.FlagInactive == 0 || fin.Packets == 0 {
		t.Errorf("closing: %+v", fin)
	}
	cl := dialModule(t)
	// Rather than wait for two minutes: what ends it is the same function.
	eventually(t, "deleted", func() bool {
		res, err := cl.Delete(nil, []usersync.Change{{Connection: &conntable.Connection{Key: want}}})
		must(t, err)
		return res[0].Err() == nil
	})
	end := r.await(t, "expired", from, 80, kind(usersync.KindExpired))
	if end.Cookie != first.Cookie || !end.Commanded || end.Dest != first.Dest {
		t.Errorf("expired: %+v", end)
	}
	if _, found, err := cl.Get(want); found || err != nil {
		t.Errorf("still there: %v, %v", found, err)
	}
}

// TestServersReset: what no kernel's sync thread tells, the server's side.
func TestServersReset(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	accepted := s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "80", 10*time.Second)
	must(t, err)
	from := port(c.LocalAddr())
	r.await(t, "established", from, 80, state(tcpEstablished))
	sc := <-accepted
	must(t, sc.SetLinger(0))
	must(t, sc.Close())
	e := r.await(t, "reset", from, 80, state(tcpClose))
	if e.Flags&conntable.FlagInactive == 0 || e.Timeout != 10*time.Second {
		t.Errorf("reset: %+v", e)
	}
	// It expires by itself after 10 s.
	end := r.await(t, "expired", from, 80, kind(usersync.KindExpired))
	if end.Commanded || end.Cookie != e.Cookie {
		t.Errorf("expired: %+v", end)
	}
}

// TestHalfOpen: a connection whose server never answers is told as well.
func TestHalfOpen(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	r := listen(t)
	if _, err := s.dial(t, "tcp4", "81", 300*time.Millisecond); err == nil {
		t.Fatal("nobody answered")
	}
	eventually(t, "half-open", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.events {
			if e.Virtual.Port() == 81 && e.Kind == usersync.KindNew && e.State == tcpSynRecv && e.Dest.Addr().String() == absentIP {
				return true
			}
		}
		return false
	})
}

// TestUDP: new, and told again when it talks after its share of the timeout;
// one-packet services are not told.
func TestUDP(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	must(t, command("ipvsadm", "--set", "0", "0", "3"))
	r := listen(t)
	s.udp(t, 5000, 54)
	s.udp(t, 5001, 53)
	first := r.await(t, "new", 5001, 53, kind(usersync.KindNew))
	if first.Protocol != 17 || first.Timeout != 3*time.Second || first.Dest.Port() != 5353 {
		t.Errorf("new: %+v", first)
	}
	eventually(t, "update", func() bool {
		s.udp(t, 5001, 53)
		for _, e := range r.of(5001, 53) {
			if e.Kind == usersync.KindUpdate && e.Cookie == first.Cookie && e.Packets > first.Packets {
				return true
			}
		}
		return false
	})
	// Each packet tells nothing new.
	before := len(r.of(5001, 53))
	const packets = 200
	for range packets {
		s.udp(t, 5001, 53)
	}
	if n := len(r.of(5001, 53)) - before; n > packets/2 {
		t.Errorf("%d events for %d packets", n, packets)
	}
	end := r.await(t, "expired", 5001, 53, kind(usersync.KindExpired))
	if end.Commanded {
		t.Errorf("expired: %+v", end)
	}
	if got := r.of(5000, 54); len(got) != 0 {
		t.Errorf("one-packet: %+v", got)
	}
}

// TestTemplate: a persistence template is told with its timeout and when it
// becomes assured.
func TestTemplate(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "82", 10*time.Second)
	must(t, err)
	first := r.await(t, "template", 0, 82, kind(usersync.KindNew))
	if !first.Template || first.Timeout != 90*time.Second || first.Client.Addr().String() != clientIP || !first.Bound {
		t.Errorf("template: %+v", first)
	}
	r.await(t, "assured", 0, 82, state(1))
	r.await(t, "its connection", port(c.LocalAddr()), 82, state(tcpEstablished))
	// A template that controls others is not deleted.
	cl := dialModule(t)
	res, err := cl.Delete(nil, []usersync.Change{{Connection: &conntable.Connection{Key: first.Key}}})
	must(t, err)
	if !errors.Is(res[0].Err(), unix.EBUSY) {
		t.Errorf("deleted in use: %v", res[0].Err())
	}
	got, found, err := cl.Get(first.Key)
	if err != nil || !found || !got.Template || got.Timeout != 90*time.Second {
		t.Errorf("get: %+v, %v, %v", got, found, err)
	}
}

// bulk are entries on the site's web service.
func bulk(n int) []usersync.Change {
	changes := make([]usersync.Change, n)
	for i := range changes {
		changes[i].Connection = &conntable.Connection{
			Key: conntable.Key{
				Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 83, byte(i >> 8), byte(i)}), 1024),
				Virtual:  netip.MustParseAddrPort(vip + ":80"),
				Protocol: 6,
			},
			Dest:    netip.MustParseAddrPort(serverIP + ":8080"),
			State:   tcpEstablished,
			Timeout: 900 * time.Second,
		}
	}
	return changes
}

func results(t testing.TB, res []usersync.Result, err error, want func(usersync.Result) bool) {
	t.Helper()
	must(t, err)
	for i, r := range res {
		if !want(r) {
			t.Fatalf("result %d: %d (%v)", i, r, r.Err())
		}
	}
}

// activeConns is what ipvsadm shows for the site's web service.
func activeConns(t testing.TB) (active uint32) {
	t.Helper()
	c, err := ipvs.Dial()
	must(t, err)
	defer c.Close()
	services, err := c.Services()
	must(t, err)
	for _, s := range services {
		if s.Addr.Port() != 80 {
			continue
		}
		dests, err := c.Dests(s)
		must(t, err)
		for _, d := range dests {
			active += d.Active
		}
	}
	return active
}

// TestDump: the dump is the table as /proc shows it, in its own namespace.
func TestDump(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	s.serve(t)
	cl := dialModule(t)
	const many = 3000
	start := time.Now()
	res, err := cl.Create(nil, bulk(many))
	results(t, res, err, func(r usersync.Result) bool { return r.Created() && r.Bound() })
	t.Logf("created %d in %v", many, time.Since(start))
	if n := activeConns(t); n != many {
		t.Errorf("%d active connections at the real server", n)
	}
	for range 5 {
		_, err := s.dial(t, "tcp4", "82", 10*time.Second)
		must(t, err)
	}
	s.udp(t, 5001, 53)

	got := map[conntable.Key]usersync.Record{}
	start = time.Now()
	must(t, cl.Dump(usersync.Filter{}, func(r *usersync.Record) error {
		if _, twice := got[r.Key]; twice {
			t.Errorf("told twice: %+v", r.Key)
		}
		got[r.Key] = *r
		return nil
	}))
	t.Logf("dumped %d in %v", len(got), time.Since(start))
	n := 0
	must(t, ipvs.ReadConns(nil, func(e *ipvs.Entry) error {
		n++
		r, ok := got[e.Key]
		// What expires between the two counts down.
		if !ok || r.Dest != e.Dest || r.State != e.State || (r.Flags&conntable.FlagSync != 0) != e.Synced ||
			e.Expires > r.Remaining+time.Second || e.Expires < r.Remaining-20*time.Second {
			t.Errorf("/proc has %+v, the dump %v %+v", *e, ok, r)
		}
		return nil
	}))
	if n != len(got) || n != many+5+1+1 {
		t.Errorf("/proc has %d entries, the dump %d", n, len(got))
	}

	count := func(f usersync.Filter) (n int) {
		must(t, cl.Dump(f, func(*usersync.Record) error { n++; return nil }))
		return n
	}
	for _, f := range []struct {
		usersync.Filter
		want int
	}{
		{usersync.Filter{Protocol: 17}, 1},
		{usersync.Filter{Virtual: netip.MustParseAddrPort(vip + ":82")}, 6},
		{usersync.Filter{Dest: netip.MustParseAddrPort(serverIP + ":5353")}, 1},
		{usersync.Filter{Dest: netip.MustParseAddrPort(absentIP + ":0")}, 0},
		{usersync.Filter{Protocol: 6, Virtual: netip.MustParseAddrPort("[2001:db8::1]:80")}, 0},
	} {
		if n := count(f.Filter); n != f.want {
			t.Errorf("filter %+v: %d entries, want %d", f.Filter, n, f.want)
		}
	}
	// Interrupted: the next one is whole again.
	stop := errors.New("enough")
	if err := cl.Dump(usersync.Filter{}, func(*usersync.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("interrupted dump: %v", err)
	}
	if n := count(usersync.Filter{}); n != len(got) {
		t.Errorf("after an interrupted dump: %d entries", n)
	}
	st, err := cl.Stats()
	must(t, err)
	if st.Connections != uint64(len(got)) || st.Created != many || st.Refused != 0 || st.TableSize < 256 {
		t.Errorf("%+v", st)
	}

	start = time.Now()
	res, err = cl.Delete(nil, bulk(many))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	t.Logf("deleted %d in %v", many, time.Since(start))
	if n := activeConns(t); n != 0 {
		t.Errorf("%d active connections left at the real server", n)
	}
	if n := count(usersync.Filter{}); n != len(got)-many {
		t.Errorf("%d entries left", n)
	}
}

// TestCreate: entries come out as they went in, changes are guarded, and what
// cannot be is refused by name.
func TestCreate(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	cl := dialModule(t)
	one := func(ch usersync.Change) usersync.Result {
		t.Helper()
		res, err := cl.Create(nil, []usersync.Change{ch})
		must(t, err)
		return res[0]
	}
	web := bulk(1)[0]
	packets := uint32(41)
	web.Packets, web.Remaining = &packets, 100*time.Second
	web.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 4, Delta: 5, Prev: 6}}
	web.Flags = conntable.FlagSeqMask
	web.FWMark = 9
	if r := one(web); !r.Created() || r.Err() != nil {
		t.Fatalf("create: %v", r.Err())
	}
	rec, found, err := cl.Get(web.Key)
	must(t, err)
	if !found || rec.State != tcpEstablished || rec.Packets != 41 || rec.Remaining > 101*time.Second || rec.Remaining < 50*time.Second ||
		rec.Timeout != 900*time.Second || rec.Seq == nil || *rec.Seq != *web.Seq || rec.FWMark != 9 ||
		rec.Flags != conntable.FlagSeqMask|conntable.FlagSync {
		t.Errorf("created %+v, %v", rec, found)
	}
	out, err := exec.Command("ipvsadm", "-Lnc").CombinedOutput()
	line := "ESTABLISHED 10.83.0.0:1024 " + vip + ":80 " + serverIP + ":8080"
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(out)), " "), line) {
		t.Errorf("ipvsadm -Lnc: %v\n%s", err, out)
	}

	// Guarded updates.
	web.State, web.Timeout, web.Remaining = tcpFinWait, 120*time.Second, 0
	web.Flags |= conntable.FlagInactive
	wrong := uint32(40)
	web.Expect = &wrong
	if r := one(web); !errors.Is(r.Err(), unix.EBUSY) {
		t.Errorf("update over a wrong packet count: %v", r.Err())
	}
	web.Expect = &packets
	if r := one(web); r.Err() != nil || r.Created() {
		t.Errorf("update: %v", r.Err())
	}
	if rec, _, _ := cl.Get(web.Key); rec.State != tcpFinWait || rec.Timeout != 120*time.Second || rec.Flags&conntable.FlagInactive == 0 {
		t.Errorf("updated %+v", rec)
	}
	web.Expect = nil

	// Another real server: old news are refused, new ones replace the entry.
	other := bulk(1)[0]
	other.Connection.Dest = netip.MustParseAddrPort("10.82.2.3:8080")
	other.Flags = conntable.FlagInactive
	if r := one(other); !errors.Is(r.Err(), unix.ESTALE) {
		t.Errorf("inactive, another real server: %v", r.Err())
	}
	other.Flags = 0
	if r := one(other); r.Err() != nil || !r.Created() || r.Bound() {
		t.Errorf("another real server: %v", r)
	}
	if res, err := cl.Delete(nil, []usersync.Change{web}); err != nil || !errors.Is(res[0].Err(), unix.ENOENT) {
		t.Errorf("delete with the old real server: %v, %v", res, err)
	}
	if rec, _, _ := cl.Get(web.Key); rec.Dest != other.Dest || rec.Bound {
		t.Errorf("replaced %+v", rec)
	}
	if res, err := cl.Delete(nil, []usersync.Change{other}); err != nil || res[0].Err() != nil {
		t.Errorf("delete: %v, %v", res, err)
	}
	if res, err := cl.Delete(nil, []usersync.Change{other}); err != nil || !errors.Is(res[0].Err(), unix.ENOENT) {
		t.Errorf("delete again: %v, %v", res, err)
	}

	// Bound late: the service comes after the entry.
	late := bulk(1)[0]
	late.Virtual = netip.MustParseAddrPort(vip + ":90")
	if r := one(late); r.Bound() {
		t.Error("bound to nothing")
	}
	must(t, command("ipvsadm", "-A", "-t", vip+":90", "-s", "rr"))
	must(t, command("ipvsadm", "-a", "-t", vip+":90", "-r", serverIP+":8080", "-m"))
	if r := one(late); !r.Bound() || r.Created() {
		t.Errorf("bound late: %v", r)
	}

	// Other families and protocols.
	six := bulk(1)[0]
	six.Client = netip.MustParseAddrPort("[2001:db8::1]:1024")
	six.Virtual = netip.MustParseAddrPort("[2001:db8::100]:80")
	six.Connection.Dest = netip.MustParseAddrPort("[2001:db8::5]:80")
	six.Flags = conntable.FlagFwdGate
	template := bulk(1)[0]
	template.Client = netip.MustParseAddrPort(clientIP + ":0")
	template.Virtual = netip.MustParseAddrPort(vip + ":82")
	template.Template, template.State = true, 1
	sctp := bulk(1)[0]
	sctp.Protocol, sctp.State = 132, 13
	for name, ch := range map[string]usersync.Change{"IPv6": six, "template": template, "SCTP": sctp} {
		if r := one(ch); !r.Created() {
			t.Errorf("%s: %v", name, r.Err())
			continue
		}
		rec, found, err := cl.Get(ch.Key)
		if err != nil || !found || rec.Key != ch.Key || rec.Dest != ch.Dest || rec.State != ch.State {
			t.Errorf("%s: %+v, %v, %v", name, rec, found, err)
		}
	}

	for _, bad := range []struct {
		name   string
		change func(c *conntable.Connection)
		want   unix.Errno
	}{
		{"unknown protocol", func(c *conntable.Connection) { c.Protocol = 99 }, unix.EINVAL},
		{"state that TCP has not", func(c *conntable.Connection) { c.State = 11 }, unix.ERANGE},
		{"state that a template has not", func(c *conntable.Connection) { c.Template, c.State = true, 2 }, unix.ERANGE},
		{"no timeout", func(c *conntable.Connection) { c.Timeout = 0 }, unix.ERANGE},
		{"one packet", func(c *conntable.Connection) { c.Flags = conntable.FlagOnePacket }, unix.EINVAL},
		{"template without port", func(c *conntable.Connection) { c.Template, c.Flags = true, conntable.FlagNoCPort }, unix.EINVAL},
		{"sequence flags without data", func(c *conntable.Connection) { c.Flags = conntable.FlagInSeq }, unix.EINVAL},
		{"no such forwarding", func(c *conntable.Connection) { c.Flags = 7 }, unix.EINVAL},
		{"families mixed", func(c *conntable.Connection) { c.Virtual = six.Virtual }, unix.EINVAL},
		{"dest of another family", func(c *conntable.Connection) { c.Dest = six.Dest }, unix.EAFNOSUPPORT},
		{"engine not there", func(c *conntable.Connection) {
			c.Template, c.State, c.PEName, c.PEData = true, 0, "nosuch", []byte("x")
		}, unix.ENOPROTOOPT},
	} {
		ch := bulk(1)[0]
		bad.change(ch.Connection)
		if r := one(ch); !errors.Is(r.Err(), bad.want) {
			t.Errorf("%s: %v, want %v", bad.name, r.Err(), bad.want)
		}
	}
}

// TestAdopted: the first packet of an entry made by command is told, so that
// peers learn who has the connection now.
func TestAdopted(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	cl := dialModule(t)
	r := listen(t)
	ch := bulk(1)[0]
	ch.Key = conntable.Key{Client: netip.MustParseAddrPort(clientIP + ":6000"), Virtual: netip.MustParseAddrPort(vip + ":53"), Protocol: 17}
	ch.Connection.Dest, ch.State = netip.MustParseAddrPort(serverIP+":5353"), 0
	res, err := cl.Create(nil, []usersync.Change{ch})
	results(t, res, err, usersync.Result.Bound)
	s.udp(t, 6000, 53)
	e := r.await(t, "adopted", 6000, 53, kind(usersync.KindAdopted))
	if e.Flags&conntable.FlagSync == 0 || e.Dest != ch.Dest {
		t.Errorf("%+v", e)
	}
	if first := r.of(6000, 53)[0]; first.Kind != usersync.KindAdopted {
		t.Errorf("told before: %+v", first)
	}
}

// TestPersistenceEngine: a template's key has the engine's data in it.
func TestPersistenceEngine(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	if err := command("modprobe", "ip_vs_pe_sip"); err != nil {
		t.Skipf("no SIP engine: %v", err)
	}
	cl := dialModule(t)
	ch := bulk(1)[0]
	ch.Key = conntable.Key{Client: netip.MustParseAddrPort(clientIP + ":0"), Virtual: netip.MustParseAddrPort(vip + ":5060"), Protocol: 17, Template: true}
	ch.State, ch.PEName, ch.PEData = 0, "sip", []byte("call-1")
	for i, want := range []bool{true, false} {
		res, err := cl.Create(nil, []usersync.Change{ch})
		results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil && r.Created() == want })
		n := 0
		must(t, cl.Dump(usersync.Filter{Protocol: 17}, func(r *usersync.Record) error {
			n++
			if r.PEName != "sip" || string(r.PEData) != "call-1" {
				t.Errorf("%+v", r)
			}
			return nil
		}))
		if n != 1 {
			t.Errorf("round %d: %d entries", i, n)
		}
	}
	res, err := cl.Delete(nil, []usersync.Change{ch})
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	// The engine is referenced by nobody now.
	eventually(t, "engine unloaded", func() bool { return command("rmmod", "ip_vs_pe_sip") == nil })
}

// TestIPv6: an IPv6 connection is told with its addresses.
func TestIPv6(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	const virtual, server = "2001:db8:82::100", "2001:db8:82:2::2"
	must(t, command("ip", "addr", "add", virtual+"/128", "dev", "lo", "nodad"))
	must(t, command("ip", "addr", "add", "2001:db8:82:1::1/64", "dev", "usync0", "nodad"))
	must(t, command("ip", "addr", "add", "2001:db8:82:2::1/64", "dev", "usync1", "nodad"))
	must(t, command("ipvsadm", "-A", "-u", "["+virtual+"]:53", "-s", "rr"))
	must(t, command("ipvsadm", "-a", "-u", "["+virtual+"]:53", "-r", "["+server+"]:53", "-m"))
	r := listen(t)
	must(t, in(s.client, func() error {
		err := errors.Join(
			command("ip", "addr", "add", "2001:db8:82:1::2/64", "dev", "usyncp0", "nodad"),
			command("ip", "route", "add", "default", "via", "2001:db8:82:1::1"),
		)
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp6", &net.UDPAddr{Port: 7000}, &net.UDPAddr{IP: net.ParseIP(virtual), Port: 53})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	}))
	e := r.await(t, "new", 7000, 53, kind(usersync.KindNew))
	if e.Client != netip.MustParseAddrPort("[2001:db8:82:1::2]:7000") || e.Virtual != netip.MustParseAddrPort("["+virtual+"]:53") ||
		e.Dest != netip.MustParseAddrPort("["+server+"]:53") || !e.Bound {
		t.Errorf("%+v", e)
	}
	rec, found, err := dialModule(t).Get(e.Key)
	if err != nil || !found || rec.Key != e.Key || rec.Cookie != e.Cookie {
		t.Errorf("get: %+v, %v, %v", rec, found, err)
	}
}

// TestNamespacesApart: events, entries, commands and counters of one
// namespace are not another's.
func TestNamespacesApart(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	r := listen(t)
	cl := dialModule(t)
	other := newNamespace(t)
	var there *usersync.Client
	must(t, in(other, func() (err error) { there, err = usersync.Dial(); return err }))
	defer there.Close()
	res, err := there.Create(nil, bulk(10))
	results(t, res, err, func(r usersync.Result) bool { return r.Created() && !r.Bound() })
	res, err = there.Delete(nil, bulk(5))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	res, err = cl.Delete(nil, bulk(10)[9:])
	results(t, res, err, func(r usersync.Result) bool { return errors.Is(r.Err(), unix.ENOENT) })
	for c, want := range map[*usersync.Client]int{cl: 0, there: 5} {
		n := 0
		must(t, c.Dump(usersync.Filter{}, func(*usersync.Record) error { n++; return nil }))
		if n != want {
			t.Errorf("%d entries, want %d", n, want)
		}
		st, err := c.Stats()
		must(t, err)
		if st.Connections != uint64(want) {
			t.Errorf("%+v, want %d connections", st, want)
		}
	}
	// An event of here, after which those of there would have come.
	res, err = cl.Create(nil, bulk(1))
	results(t, res, err, usersync.Result.Created)
	res, err = cl.Delete(nil, bulk(1))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	r.await(t, "own event", 1024, 80, kind(usersync.KindExpired))
	if n := len(r.of(1024, 80)); n != 1 {
		t.Errorf("%d events", n)
	}
}
