package ipvs

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/config"
	"saru/syncproto/kernelsync"
)

// The tests of this file need a kernel with IPVS and root. Each runs in a
// process of its own in a new network namespace, since /proc and sysctls go
// by the process. A second director is another such process.

const (
	envInside   = "SARU_TEST_INSIDE"
	envDirector = "SARU_TEST_DIRECTOR"
	vip         = "10.81.0.100"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDirector); dir != "" {
		if err := director(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inside returns true in the process that runs the test proper. In the other
// it starts that process, passes its output on, and returns false.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envInside) == t.Name() {
		if err := ipvsadm("--clear"); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c, err := Dial()
	if errors.Is(err, ErrNotSupported) {
		t.Skipf("this kernel has no IPVS: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout=120s")
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

func ipvsadm(args ...string) error {
	out, err := exec.Command("ipvsadm", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ipvsadm %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// serve sets up a director that answers for the VIP itself, TCP port 80.
func serve() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(vip).To4(), Mask: net.CIDRMask(32, 32)}}
	return errors.Join(
		netlink.AddrReplace(lo, addr),
		ipvsadm("-A", "-t", vip+":80", "-s", "rr"),
		ipvsadm("-a", "-t", vip+":80", "-r", vip+":80", "-g"),
	)
}

func testConfig(t *testing.T) Config {
	return Config{StateFile: filepath.Join(t.TempDir(), "tap.json")}
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// running runs tap until the test ends, then closes it.
func running(t *testing.T, tap *Tap) (stop func()) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := tap.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		goleak.VerifyNone(t, leaks)
	})
	t.Cleanup(stop)
	select {
	case <-tap.Ready():
	case <-time.After(20 * time.Second):
		t.Error("the tap is not ready after 20 s")
	}
	return stop
}

// A captured is a record and when it came.
type captured struct {
	conntable.Connection
	at time.Time
}

type recorder struct {
	mu   sync.Mutex
	got  []captured
	more chan struct{}
}

func newRecorder() *recorder { return &recorder{more: make(chan struct{}, 1)} }

func (r *recorder) record(c *conntable.Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, captured{*c, time.Now()})
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// wait returns the first record from client in a state, or an error after 10 s.
func (r *recorder) wait(client netip.AddrPort, state uint16) (captured, error) {
	deadline := time.After(10 * time.Second)
	for {
		r.mu.Lock()
		for _, c := range r.got {
			if c.Client == client && c.State == state {
				r.mu.Unlock()
				return c, nil
			}
		}
		r.mu.Unlock()
		select {
		case <-r.more:
		case <-deadline:
			return captured{}, fmt.Errorf("no record of %v in state %d within 10 s", client, state)
		}
	}
}

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func inTable(key conntable.Key) (Entry, bool, error) {
	var found Entry
	ok := false
	err := ReadConns(func(e *Entry) error {
		if e.Key == key {
			found, ok = *e, true
		}
		return nil
	})
	return found, ok, err
}

// eventually polls until cond is true, for at most 10 s.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

// A request is a line to a director process, answered by a line.
type request struct {
	Op   string // "inject", "delete", "find"
	Conn conntable.Connection
}

type answer struct {
	Err   string
	Found bool
	Entry Entry
}

// director is the second director: it injects what it is told.
func director(dir string, in io.Reader, out io.Writer) error {
	if services, err := exec.Command("ipvsadm", "-Sn").Output(); err != nil || len(services) == 0 {
		if err := serve(); err != nil {
			return err
		}
	}
	tap, err := OpenTap(slog.New(slog.NewTextHandler(os.Stderr, nil)), Config{StateFile: filepath.Join(dir, "b.json")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	<-tap.Ready()
	enc := json.NewEncoder(out)
	sc := bufio.NewScanner(in)
	for sc.Scan() {
		var req request
		var ans answer
		err := json.Unmarshal(sc.Bytes(), &req)
		if err == nil {
			switch req.Op {
			case "inject":
				err = tap.Inject([]conntable.Connection{req.Conn})
			case "delete":
				err = tap.Delete(req.Conn)
			case "find":
				ans.Entry, ans.Found, err = inTable(req.Conn.Key)
			}
		}
		if err != nil {
			ans.Err = err.Error()
		}
		if err := enc.Encode(ans); err != nil {
			return err
		}
	}
	cancel()
	return errors.Join(<-done, tap.Close())
}

type peer struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// newPeer starts a director process in a new network namespace.
func newPeer(t *testing.T) *peer {
	t.Helper()
	p := startDirector(t, t.TempDir(), syscall.CLONE_NEWNET)
	t.Cleanup(func() {
		p.in.Close()
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("second director: %v", err)
		}
	})
	return p
}

func startDirector(t *testing.T, dir string, clone uintptr) *peer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envDirector+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: clone, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &peer{t, cmd, in, bufio.NewScanner(out)}
}

func (p *peer) ask(op string, c conntable.Connection) answer {
	p.t.Helper()
	b, err := json.Marshal(request{op, c})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		p.t.Fatal(err)
	}
	var ans answer
	if !p.out.Scan() {
		p.t.Fatal("the second director ended")
	}
	if err := json.Unmarshal(p.out.Bytes(), &ans); err != nil {
		p.t.Fatal(err)
	}
	if ans.Err != "" {
		p.t.Fatalf("second director: %s: %s", op, ans.Err)
	}
	return ans
}

// TestCaptureInject: a TCP connection made through one director is captured
// there soon, injected into another, seen in its table as it is, and deleted.
func TestCaptureInject(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	rec := newRecorder()
	cfg := testConfig(t)
	cfg.OnRecord = rec.record
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if ok, why := tap.Healthy(); !ok {
		t.Fatalf("not healthy: %s", why)
	}
	b := newPeer(t)

	const conns = 20
	var delays []time.Duration
	for range conns {
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		made := time.Now()
		got, err := rec.wait(addrOf(c.LocalAddr()), 1)
		if err != nil {
			t.Fatalf("%v; %+v", err, tap.Stats())
		}
		delays = append(delays, got.at.Sub(made))
		ans := b.ask("inject", got.Connection)
		eventually(t, "injected entry in the other director's table", func() bool {
			ans = b.ask("find", got.Connection)
			return ans.Found
		})
		e := ans.Entry
		if e.State != 1 || e.Dest != got.Dest || !e.Synced || e.Expires > 900*time.Second || e.Expires < 890*time.Second {
			t.Errorf("entry %+v of %+v", e, got.Connection)
		}
		b.ask("delete", got.Connection)
		eventually(t, "deleted entry gone from the other director's table", func() bool {
			return !b.ask("find", got.Connection).Found
		})
	}
	slices.Sort(delays)
	median := delays[len(delays)/2]
	t.Logf("capture after the handshake: median %v, max %v; heartbeat's own delay %v", median, delays[len(delays)-1], tap.Stats().BeatDelay)
	if median > 500*time.Millisecond {
		t.Errorf("median %v: the heartbeat does not push records out", median)
	}
	s := tap.Stats()
	t.Logf("%+v", s)
	if s.CaptureDrops != 0 || s.InjectDrops != 0 || !s.Guarded {
		t.Errorf("%+v", s)
	}
}

// TestBurst: no record is lost when many connections come at once.
func TestBurst(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	var mu sync.Mutex
	established := map[netip.AddrPort]bool{}
	cfg := testConfig(t)
	cfg.OnRecord = func(c *conntable.Connection) {
		mu.Lock()
		defer mu.Unlock()
		if c.State == 1 {
			established[c.Client] = true
		}
	}
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	const n = 2000
	start := time.Now()
	var clients []netip.AddrPort
	for range n {
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, addrOf(c.LocalAddr()))
		c.Close()
	}
	took := time.Since(start)
	eventually(t, "every connection captured as established", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			if !established[c] {
				return false
			}
		}
		return true
	})
	s := tap.Stats()
	t.Logf("%d connections in %v, %.0f/s; %+v", n, took, n/took.Seconds(), s)
	if s.CaptureDrops != 0 {
		t.Errorf("%+v", s)
	}
}

// TestFirewall: an input chain that lets in nothing but lo does no harm; one
// that drops lo too is named as the reason of a degraded capture.
func TestFirewall(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	nft := func(rules string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("no firewall to test with: nft: %v %s", err, out)
		}
	}
	nft("table inet fw { chain input { type filter hook input priority 0; policy drop; iif lo accept; }; }")
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if ok, why := tap.Healthy(); !ok || tap.LastBeat().IsZero() {
		t.Errorf("behind a firewall that accepts lo: %v, last beat %v", why, tap.LastBeat())
	}
	nft("flush chain inet fw input")
	eventually(t, "degraded", func() bool { ok, _ := tap.Healthy(); return !ok })
	if _, why := tap.Healthy(); !strings.Contains(why, "firewall") {
		t.Errorf("reason %q", why)
	}
	nft("add rule inet fw input accept")
	eventually(t, "healthy again", func() bool { ok, _ := tap.Healthy(); return ok })
}

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
	if err := ReadConns(func(*Entry) error { return nil }); !errors.Is(err, ErrNotSupported) {
		t.Errorf("%v", err)
	}
}

// everything is what a Tap may touch.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, s := range (&Config{}).sysctls() {
		v, err := readSysctl(s.Name)
		fmt.Fprintln(&b, s.Name, v, err)
	}
	for _, args := range [][]string{{"ip", "-o", "addr"}, {"nft", "list", "ruleset"}, {"ipvsadm", "-l", "--daemon"}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		fmt.Fprintln(&b, args, string(out), err)
	}
	return b.String()
}

// TestCloseRestores: after Close all is as before, and the heartbeat's
// entries are gone; also if a Tap in between ended without Close.
func TestCloseRestores(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if err := writeSysctl("sync_threshold", "2 77"); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	cfg := testConfig(t)
	for _, crash := range []bool{false, true, false} {
		tap, err := OpenTap(testLog(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if everything(t) == before {
			t.Fatal("the tap changed nothing that this test sees")
		}
		stop := running(t, tap)
		if _, err := OpenTap(testLog(t), cfg); config.ExitStatus(err) != config.BadInputStatus {
			t.Errorf("a second tap: %v", err)
		}
		if crash {
			tap.cfg.Keep = true // all that a crash leaves
		}
		stop()
		if crash {
			continue
		}
		if after := everything(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		eventually(t, "heartbeat entries gone", func() bool {
			n := 0
			if err := ReadConns(func(e *Entry) error {
				if IsBeat(&e.Connection) {
					n++
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
		if _, err := os.Stat(cfg.StateFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state file after a clean stop: %v", err)
		}
	}
}

// TestKilled: what a killed process left is not taken for somebody else's,
// costs no error messages meanwhile, and the next Tap puts the originals back.
func TestKilled(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if err := writeSysctl("sync_threshold", "2 77"); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	dir := t.TempDir()
	d := startDirector(t, dir, 0)
	d.ask("find", conntable.Connection{}) // answers once it runs
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	if left := everything(t); !strings.Contains(left, "syncd0") || !strings.Contains(left, "0\t0") {
		t.Errorf("a killed process left nothing, so this test shows nothing:\n%s", left)
	}
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 3 { // records that the master thread sends to nobody
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	time.Sleep(3 * time.Second)
	tap, err := OpenTap(testLog(t), Config{StateFile: filepath.Join(dir, "b.json")})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, tap)
	if ok, why := tap.Healthy(); !ok {
		t.Error(why)
	}
	stop()
	if after := everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if log, err := exec.Command("dmesg").Output(); err == nil && strings.Contains(string(log), "ip_vs_send_async error") {
		t.Errorf("the kernel logged:\n%s", log)
	}
}

// TestRecord: every message that the kernel sends for persistent, marked, SIP
// and plain connections decodes without a drop and encodes to the same bytes.
// With -v it prints the messages, for kernelsync's testdata.
func TestRecord(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := errors.Join(
		serve(),
		ipvsadm("-A", "-t", vip+":81", "-s", "rr", "-p", "90"),
		ipvsadm("-a", "-t", vip+":81", "-r", vip+":81", "-g"),
		ipvsadm("-A", "-u", vip+":53", "-s", "rr"),
		ipvsadm("-a", "-u", vip+":53", "-r", vip+":53", "-g"),
	); err != nil {
		t.Fatal(err)
	}
	sip := errors.Join(
		exec.Command("modprobe", "ip_vs_pe_sip").Run(),
		ipvsadm("-A", "-u", vip+":5060", "-s", "rr", "-p", "90", "--pe", "sip"),
		ipvsadm("-a", "-u", vip+":5060", "-r", vip+":5060", "-g"),
	)
	if sip != nil {
		t.Logf("without SIP: %v", sip)
	}
	cfg := testConfig(t)
	cfg.MaxLen = 1472
	cfg.BeatRate = 1 // so that few of the printed records are heartbeats
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	}()
	call := "INVITE sip:a@b SIP/2.0\r\nCall-ID: 123456789012@10.81.0.1\r\n\r\n"
	for _, to := range []struct{ network, port, say string }{
		{"udp", "53", "x"},
		{"udp", "5060", call},
		{"tcp", "80", ""},
		{"tcp", "81", ""},
	} {
		var c net.Conn
		addr := net.JoinHostPort(vip, to.port)
		if to.network == "tcp" {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
		} else {
			pc, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
		}
		if c, err = net.Dial(to.network, addr); err != nil {
			t.Fatal(err)
		}
		if to.say != "" {
			if _, err := io.WriteString(c, to.say); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
	if err := tap.tun.SetReadDeadline(time.Now().Add(4 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, tunMTU)
	dec := kernelsync.Decoder{SyncID: tap.cfg.CaptureID}
	protos := map[string]int{}
	for {
		n, err := tap.tun.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		msg, ok := payload(buf[:n], tunAddr, netip.AddrPortFrom(syncGroup, tap.cfg.CapturePort))
		if !ok {
			continue
		}
		t.Logf("message %x", msg)
		var again []byte
		var conns []conntable.Connection
		if err := dec.Decode(msg, func(c *conntable.Connection) {
			d := *c
			d.PEData = slices.Clone(c.PEData)
			conns = append(conns, d)
			protos[fmt.Sprintf("%d %v %s", c.Protocol, c.Template, c.PEName)]++
		}); err != nil {
			t.Fatal(err)
		}
		again, _, err = kernelsync.AppendMessage(nil, tap.cfg.CaptureID, kernelsync.MaxSize, conns)
		if err != nil || string(again) != string(msg) {
			t.Errorf("encoded again %x (%v)", again, err)
		}
	}
	t.Logf("%v %+v", protos, dec.Counts)
	for _, want := range []string{"6 false ", "6 true ", "17 false "} {
		if protos[want] == 0 {
			t.Errorf("no record of %q", want)
		}
	}
	if c := dec.Counts; c.Protocol+c.State+c.PE+c.UnknownOption+c.Template+c.OnePacket+c.Miscounted != 0 {
		t.Errorf("dropped: %+v", c)
	}
}

// TestForeignThread: sync threads of somebody else are refused, and nothing
// is changed.
func TestForeignThread(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"master", "backup"} {
		if err := ipvsadm("--start-daemon", role, "--mcast-interface", "lo", "--syncid", "7"); err != nil {
			t.Fatal(err)
		}
		before := everything(t)
		_, err := OpenTap(testLog(t), testConfig(t))
		if config.ExitStatus(err) != config.BadInputStatus {
			t.Fatalf("beside a foreign %s thread: %v", role, err)
		}
		t.Log(err)
		for _, part := range []string{role, `"lo"`, "7", "--stop-daemon"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not name %q", err, part)
			}
		}
		if after := everything(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if err := ipvsadm("--stop-daemon", role); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHeals: threads stopped and entries cleared by somebody else come back
// by themselves.
func TestHeals(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	beating := func(since time.Time) func() bool {
		return func() bool { ok, _ := tap.Healthy(); return ok && tap.LastBeat().After(since) }
	}
	for what, args := range map[string][]string{
		"services cleared":      {"ipvsadm", "-C"},
		"master thread stopped": {"ipvsadm", "--stop-daemon", "master"},
		"backup thread stopped": {"ipvsadm", "--stop-daemon", "backup"},
		"ruleset flushed":       {"nft", "flush", "ruleset"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", what, err, out)
		}
		if what == "services cleared" {
			if err := serve(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "beating after "+what, beating(time.Now().Add(200*time.Millisecond)))
	}
	eventually(t, "guard put back", func() bool { ok, err := tap.guard.present(); return err == nil && ok })
}

// TestGuard: another user can neither inject nor feed the capture.
func TestGuard(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	cfg := testConfig(t)
	cfg.OnRecord = rec.record
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if !tap.Stats().Guarded {
		t.Skip("nftables cannot guard here")
	}
	c := bulk(1)[0]
	msg, _, err := kernelsync.AppendMessage(nil, tap.cfg.InjectID, 1472, []conntable.Connection{c})
	if err != nil {
		t.Fatal(err)
	}
	spoof := func(port uint16, dev string, uid uint32) {
		script := fmt.Sprintf(`import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
i = socket.if_nametoindex(%q)
import struct
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"\0"*4, b"\0"*4, i))
try: s.sendto(bytes.fromhex(%q), ("224.0.0.81", %d))
except PermissionError: pass`, dev, hex.EncodeToString(msg), port)
		cmd := exec.Command("python3", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	spoof(tap.cfg.InjectPort, "lo", 65534)
	msg[1] = tap.cfg.CaptureID
	spoof(tap.cfg.CapturePort, tap.cfg.Interface, 65534)
	spoof(tap.cfg.CapturePort, tap.cfg.Interface, 0)
	msg[1] = tap.cfg.InjectID
	time.Sleep(time.Second)
	if _, ok, err := inTable(c.Key); ok || err != nil {
		t.Errorf("another user injected (%v)", err)
	}
	if len(rec.got) != 0 {
		t.Errorf("captured what the kernel did not tell: %+v", rec.got)
	}
	spoof(tap.cfg.InjectPort, "lo", 0)
	eventually(t, "root's injection in the table (else this test proves nothing)", func() bool {
		_, ok, err := inTable(c.Key)
		return ok && err == nil
	})
}

func bulk(n int) []conntable.Connection {
	conns := make([]conntable.Connection, n)
	for i := range conns {
		c := &conns[i]
		c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 82, byte(i >> 8), byte(i)}), 1024)
		c.Virtual = netip.MustParseAddrPort(vip + ":80")
		c.Dest = c.Virtual
		c.Protocol = kernelsync.ProtoTCP
		c.State, c.Flags, c.Timeout = 1, conntable.FlagFwdGate, 900*time.Second
	}
	return conns
}

// TestBulk: tens of thousands of entries go in without a loss, as fast as the
// kernel takes them.
func TestBulk(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	const n = 30000
	start := time.Now()
	if err := tap.Inject(bulk(n)); err != nil {
		t.Fatal(err)
	}
	if err := tap.inj.drain(0); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	services, err := tap.client.Services()
	if err != nil || len(services) != 1 {
		t.Fatalf("services %+v, %v", services, err)
	}
	var active uint32
	eventually(t, "all entries active at their real server", func() bool {
		dests, err := tap.client.Dests(services[0])
		if err != nil || len(dests) != 1 {
			t.Fatalf("real servers %+v, %v", dests, err)
		}
		active = dests[0].Active
		return active == n
	})
	t.Logf("%d entries in %v, %.0f/s; %+v", n, took, n/took.Seconds(), tap.Stats())
	if s := tap.Stats(); s.InjectDrops != 0 || s.Injected != n {
		t.Errorf("%+v", s)
	}
}

// TestIPv6: an IPv6 connection goes in through the IPv4 group and reads back.
func TestIPv6(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	c := bulk(1)[0]
	c.Client = netip.MustParseAddrPort("[2001:db8::1]:1024")
	c.Virtual = netip.MustParseAddrPort("[2001:db8::100]:80")
	c.Dest = netip.MustParseAddrPort("[2001:db8::5]:80")
	if err := tap.Inject([]conntable.Connection{c}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "IPv6 entry in the table", func() bool {
		e, ok, err := inTable(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		return ok && e.Dest == c.Dest && e.State == 1
	})
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
