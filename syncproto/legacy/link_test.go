package legacy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"saru/conntable"
	"saru/internal/config"
	"saru/internal/testnet"
	"saru/syncproto/kernelsync"
)

// Root runs the tests in a network namespace of their own, so that whatever
// goroutine opens a socket does so there.
func TestMain(m *testing.M) {
	const inside = "LEGACY_TEST_INSIDE"
	if os.Geteuid() != 0 || os.Getenv(inside) != "" || strings.Contains(strings.Join(os.Args, " "), "-test.fuzz") {
		goleak.VerifyTestMain(m)
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func conn(i int) conntable.Connection {
	return conntable.Connection{
		Key: conntable.Key{
			Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 40001),
			Virtual:  netip.MustParseAddrPort("10.9.0.100:80"),
			Protocol: 6,
		},
		Dest: netip.MustParseAddrPort("192.168.6.5:80"), State: 1, Flags: conntable.FlagFwdGate, Timeout: 900 * time.Second,
	}
}

func message(t testing.TB, conns ...conntable.Connection) []byte {
	t.Helper()
	msg, n, err := kernelsync.AppendMessage(nil, 7, 1<<16, conns)
	if err != nil || n != len(conns) {
		t.Fatalf("%d records: %v", n, err)
	}
	return msg
}

// deaf returns a Link without sockets, and what it delivers.
func deaf() (*Link, *[]conntable.Connection) {
	var got []conntable.Connection
	l := newLink(Config{SyncID: 7, Deliver: func(c *conntable.Connection) { got = append(got, *c) }, Log: slog.New(slog.DiscardHandler)}, nil)
	return l, &got
}

func TestSyncdsAreNotHeard(t *testing.T) {
	l, got := deaf()
	kernels, ours := conn(1), conn(2)
	kernels.Flags |= conntable.FlagSync | 0x10000 // all that a kernel sends
	ours.Flags |= mark1
	l.take(message(t, kernels, ours), 1)
	zero, _, err := kernelsync.AppendMessage0(nil, 7, 1472, []conntable.Connection{conn(3)})
	must(t, err)
	l.take(zero, 1)
	marked := conn(4)
	marked.Flags |= mark0
	zero, _, err = kernelsync.AppendMessage0(nil, 7, 1472, []conntable.Connection{marked})
	must(t, err)
	l.take(zero, 1)
	st := l.Stats()
	if len(*got) != 2 || (*got)[0].Client != kernels.Client || (*got)[1].Client != conn(3).Client || st.Heard != 2 || st.Syncd != 2 {
		t.Errorf("heard %+v, %+v", *got, st)
	}
}

func TestFloodIsCut(t *testing.T) {
	l, got := deaf()
	var conns []conntable.Connection
	for i := range kernelsync.MaxRecords {
		conns = append(conns, conn(i))
	}
	msg := message(t, conns...)
	const messages = 2 * MaxHeard / kernelsync.MaxRecords
	for range messages {
		l.take(msg, 1)
	}
	if st := l.Stats(); len(*got) != MaxHeard || st.Flood != messages*kernelsync.MaxRecords-MaxHeard {
		t.Errorf("%d handed on, %+v", len(*got), st)
	}
	l.take(msg, 2)
	if len(*got) != MaxHeard+kernelsync.MaxRecords {
		t.Error("the next second is not a new one")
	}
}

func FuzzTake(f *testing.F) {
	ours := conn(2)
	ours.Flags |= mark1
	f.Add(message(f, conn(1), ours))
	zero, _, _ := kernelsync.AppendMessage0(nil, 7, 1472, []conntable.Connection{conn(1)})
	f.Add(zero)
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		l, got := deaf()
		l.take(msg, 1)
		st := l.Stats()
		if st.Heard != uint64(len(*got)) || st.Heard+st.Syncd+st.Flood != st.Decoded.Records {
			t.Fatalf("%d handed on; %+v", len(*got), st)
		}
		for _, c := range *got {
			if len(msg) > 0 && msg[0] == 0 && c.Flags&mark1 != 0 {
				t.Fatalf("a syncd's record was handed on: %+v", c)
			}
		}
	})
}

// A wire is a link between this namespace (lg0) and another (eth0), with a
// legacy director's sockets there.
type wire struct {
	t     *testing.T
	group netip.AddrPort
	here  *netlink.Handle
	there testnet.Namespace
	peer  *sockets
}

func newWire(t *testing.T, group netip.AddrPort) *wire {
	t.Helper()
	w := &wire{t: t, group: group, there: testnet.NewNamespace(t)}
	own, err := netns.Get()
	must(t, err)
	t.Cleanup(func() { own.Close() })
	w.here = testnet.Handle(t, own)
	w.plug()
	t.Cleanup(w.unplug)
	t.Cleanup(func() { w.peer.close() })
	return w
}

// plug connects both, and opens the legacy director's sockets.
func (w *wire) plug() {
	t := w.t
	t.Helper()
	testnet.Cable(t, w.here, "lg0", w.there, "eth0")
	testnet.Up(t, w.here, "lg0", "10.98.0.1/24", "2001:db8:98::1/64")
	testnet.Up(t, testnet.Handle(t, w.there), "eth0", "10.98.0.2/24", "2001:db8:98::2/64")
	running := func(name string) bool {
		ifi, err := net.InterfaceByName(name)
		return err == nil && ifi.Flags&net.FlagRunning != 0
	}
	testnet.Await(t, "the link carries", func() bool {
		there := false
		must(t, testnet.Within(w.there, func() error { there = running("eth0"); return nil }))
		return there && running("lg0")
	})
	must(t, testnet.Within(w.there, func() (err error) { w.peer, err = openSockets("eth0", w.group, 1); return err }))
}

func (w *wire) unplug() {
	if link, err := w.here.LinkByName("lg0"); err == nil {
		must(w.t, w.here.LinkDel(link))
	}
}

func (w *wire) down() {
	link, err := w.here.LinkByName("lg0")
	must(w.t, err)
	must(w.t, w.here.LinkSetDown(link))
}

// say sends what a legacy director's kernel would.
func (w *wire) say(c ...conntable.Connection) error {
	_, err := w.peer.outc.WriteTo(message(w.t, c...), w.peer.group)
	return err
}

// heard is the next datagram that a legacy director hears.
func (w *wire) heard() []byte {
	w.t.Helper()
	buf := make([]byte, 1<<16)
	w.peer.in[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := w.peer.in[0].ReadFrom(buf)
	must(w.t, err)
	return buf[:n]
}

// run opens a Link on lg0 and runs it until the test ends.
func (w *wire) run(version int, deliver func(*conntable.Connection)) *Link {
	t := w.t
	t.Helper()
	l, err := Open(Config{Interface: "lg0", Group: w.group, Ports: 2, SyncID: 7, Version: version, Log: slog.New(slog.DiscardHandler), Deliver: deliver})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		must(t, l.Close())
	})
	return l
}

// groups are where legacy directors may meet.
var groups = map[string]netip.AddrPort{"IPv4": DefaultGroup, "IPv6": ExampleGroup6}

func TestTold(t *testing.T) {
	for version, want := range [...]string{
		"01" + "07" + "001c" + "0006" + "9c41" + "0050" + "0050" + "0a090001" + "0a090064" + "c0a80605" + "8003" + "0001",
		"0007002c01010000" + "00060024" + "80000003" + "0001" + "9c41" + "0050" + "0050" + "00000000" + "00000384" + "0a090001" + "0a090064" + "c0a80605",
	} {
		for family, group := range groups {
			t.Run(fmt.Sprintf("version %d over %s", version, family), func(t *testing.T) { testTold(t, group, version, want) })
		}
	}
}

func testTold(t *testing.T, group netip.AddrPort, version int, want string) {
	w := newWire(t, group)
	l := w.run(version, nil)
	if n, err := l.Send([]conntable.Connection{conn(1)}); n != 1 || err != nil {
		t.Fatalf("%d sent, %v", n, err)
	}
	if got := hex.EncodeToString(w.heard()); got != want {
		t.Errorf(" got %s\nwant %s", got, want)
	}
	// Many go in datagrams that the network carries whole; what cannot be said
	// is left out.
	var many []conntable.Connection
	for i := range 1000 {
		many = append(many, conn(i))
	}
	many[500].Dest = netip.MustParseAddrPort("[2001:db8::1]:80")
	if n, err := l.Send(many); n != 999 || err != nil {
		t.Fatalf("%d of 999 sent, %v", n, err)
	}
	got := map[netip.AddrPort]bool{}
	var d kernelsync.Decoder
	for len(got) < 999 {
		msg := w.heard()
		if len(msg) > w.peer.room {
			t.Fatalf("a datagram of %d bytes", len(msg))
		}
		must(t, d.Decode(msg, func(c *conntable.Connection) { got[c.Client] = true }))
	}
	if st := l.Stats(); st.Told != 1000 || st.Untold != 1 || st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

func TestHeard(t *testing.T) {
	for family, group := range groups {
		t.Run(family, func(t *testing.T) { testHeard(t, group) })
	}
}

func testHeard(t *testing.T, group netip.AddrPort) {
	w := newWire(t, group)
	var mu sync.Mutex
	var got []conntable.Connection
	l := w.run(1, func(c *conntable.Connection) { mu.Lock(); defer mu.Unlock(); got = append(got, *c) })
	// Also what is much larger than the network carries whole.
	var many []conntable.Connection
	for i := range kernelsync.MaxRecords {
		many = append(many, conn(i))
	}
	must(t, w.say(many...))
	_, err := w.peer.outc.WriteTo(bytes.Repeat([]byte{7}, 100), w.peer.group)
	must(t, err)
	// And from another of the kernel's threads.
	second := *w.peer.group
	second.Port++
	_, err = w.peer.outc.WriteTo(message(t, conn(1000)), &second)
	must(t, err)
	testnet.Await(t, "all heard", func() bool { st := l.Stats(); return st.Heard == kernelsync.MaxRecords+1 && st.Decoded.Size == 1 })
	mu.Lock()
	defer mu.Unlock()
	got = slices.DeleteFunc(got, func(c conntable.Connection) bool { return c.Client == conn(1000).Client })
	if c := got[3]; c.Client != many[3].Client || c.Timeout != 900*time.Second || c.State != 1 {
		t.Errorf("%+v", c)
	}
}

func TestInterfaceVanishesAndReturns(t *testing.T) {
	for family, group := range groups {
		t.Run(family, func(t *testing.T) { testVanishes(t, group) })
	}
}

func testVanishes(t *testing.T, group netip.AddrPort) {
	w := newWire(t, group)
	l := w.run(1, func(*conntable.Connection) {})
	hears := func(what string) {
		t.Helper()
		before := l.Stats().Heard
		testnet.Await(t, what, func() bool {
			_ = w.say(conn(1)) // fails while the link is cut
			return l.Stats().Heard > before
		})
	}
	hears("heard at first")
	w.down()
	testnet.Up(t, w.here, "lg0")
	hears("heard after the link was down")

	w.unplug()
	testnet.Await(t, "the loss is told", func() bool { return l.Stats().Down != "" })
	if _, err := l.Send([]conntable.Connection{conn(1)}); !errors.Is(err, errDown) {
		t.Errorf("sending into nothing: %v", err)
	}
	must(t, w.peer.close())
	w.plug()
	hears("heard on the interface made anew")
	if why := l.Stats().Down; why != "" {
		t.Errorf("still told to be cut: %s", why)
	}
	if n, err := l.Send([]conntable.Connection{conn(1)}); n != 1 || err != nil {
		t.Errorf("%d sent, %v", n, err)
	}
	w.heard()
}

func TestBadInterface(t *testing.T) {
	w := newWire(t, DefaultGroup)
	w.down()
	for name, want := range map[string]string{"nope0": "no such interface", "lg0": "is down"} {
		_, err := Open(Config{Interface: name, Group: DefaultGroup, Ports: 1})
		if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want bad input that says %q", name, err, want)
		}
	}
}
