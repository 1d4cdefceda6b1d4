package ipvs

import (
	"bufio"
	"context"
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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"saru/conntable"
)

// The kernel tests of this package need IPVS and root. Each runs in a
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
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout=10m")
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

// servingTap sets up the virtual services and runs a Tap until the test ends.
func servingTap(t *testing.T) *Tap {
	t.Helper()
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	return tap
}

// listening is a real server on the virtual address, until the test ends.
func listening(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// serving is a virtual service and its real server.
func serving(t *testing.T) net.Listener {
	t.Helper()
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	return listening(t)
}

// speaking returns a Tap that does not run, while the kernel's threads speak a
// version of the protocol. It is closed when the test ends.
func speaking(t *testing.T, cfg Config, version string) *Tap {
	t.Helper()
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := writeSysctl("sync_version", version); err != nil {
		t.Fatal(err)
	}
	return tap
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
	err := ReadConns(nil, func(e *Entry) error {
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
