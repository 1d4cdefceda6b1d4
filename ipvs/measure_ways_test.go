package ipvs

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"saru/internal/testnet"
)

// How many connections each way is given, as fast as they are made and one each
// millisecond; and how many it is asked with whether it works.
const (
	waysFlood = 12_000
	waysPaced = 1_000
	waysAsked = 20
)

// otherVIP comes first on lo.
const otherVIP = "10.81.0.99/32"

// TestMeasureWays: what a record costs and what gets in its way, by the three
// ways to have the master thread's datagrams: a TUN interface, as the Tap does,
// lo, and a veth pair into a namespace that only the reader has. To be run in a
// guest whose clock counts instructions (SARU_LAB_ACCEL=icount, one processor).
func TestMeasureWays(t *testing.T) {
	measured(t)
	if !inside(t) {
		return
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4)) // so that the kernel decides when the reader runs
	w := newWaysWorld(t)
	flood, paced := w.cost(t, nil, waysFlood, 0), w.cost(t, nil, waysPaced, time.Millisecond)
	t.Logf("no sync thread: a connection costs %v", flood.busy/waysFlood)
	for _, way := range []tapWay{
		{"TUN", "syncd0", w.ns, w.ns, 1},
		{"lo", "lo", w.ns, w.ns, 64},
		{"lo, one at a time", "lo", w.ns, w.ns, 1},
		{"veth", "tap0", w.ns, testnet.NewNamespace(t), 64},
	} {
		t.Run(way.name, func(t *testing.T) {
			r := w.start(t, way)
			c := w.cost(t, r, waysFlood, 0)
			t.Logf("as fast as they are made: %v a record, all in all; %v", (c.busy-flood.busy)/waysFlood, c.beyond(flood))
			c = w.cost(t, r, waysPaced, time.Millisecond)
			t.Logf("one a millisecond: %v", c.beyond(paced))
			r.still.Lock()
			time.AfterFunc(2*time.Second, r.still.Unlock)
			t.Logf("nobody reads for 2 s: %v", w.once(t, r, waysFlood, 0).beyond(flood))
			w.others(t, way, r)
			w.hindrances(t, way, r)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A waysWorld is a director with two VIPs on lo, of which one may leave, and a
// virtual service whose real server swallows what it gets.
type waysWorld struct {
	client *Client
	ns     testnet.Namespace
	h      *netlink.Handle
	raw    int    // socket that sends what is a new connection each
	next   uint32 // connection
}

func newWaysWorld(t *testing.T) *waysWorld {
	w := &waysWorld{}
	var err error
	w.client, err = Dial()
	must(t, err)
	t.Cleanup(func() { w.client.Close() })
	w.ns, err = netns.Get()
	must(t, err)
	t.Cleanup(func() { w.ns.Close() })
	w.h = testnet.Handle(t, w.ns)
	must(t, w.h.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "real0"}}))
	testnet.Up(t, w.h, "real0", "10.82.0.1/24")
	testnet.Up(t, w.h, "lo", otherVIP, vip+"/32")
	run(t, "ip", "neigh", "add", "10.82.0.2", "lladdr", "02:00:00:00:00:02", "dev", "real0")
	must(t, ipvsadm("-A", "-u", vip+":53", "-s", "rr"))
	must(t, ipvsadm("-a", "-u", vip+":53", "-r", "10.82.0.2:53", "-g"))
	must(t, ipvsadm("--set", "0", "0", "3"))
	for _, s := range (&Config{}).sysctls() {
		must(t, writeSysctl(s.Name, s.Was))
	}
	w.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	must(t, err)
	t.Cleanup(func() { unix.Close(w.raw) })
	return w
}

// start opens a way and points a master thread at it.
func (w *waysWorld) start(t *testing.T, way tapWay) *wayReader {
	for _, addr := range []string{otherVIP, vip + "/32"} { // the master takes the first
		exec.Command("ip", "addr", "del", addr, "dev", "lo").Run()
		run(t, "ip", "addr", "add", addr, "dev", "lo")
	}
	r := way.open(t)
	cfg := Config{Interface: way.iface, CapturePort: waysPort}
	cfg.defaults()
	must(t, w.client.StartDaemon(cfg.daemons()[1]))
	t.Cleanup(func() { must(t, w.client.StopDaemon(Master)) })
	testnet.Await(t, "a record", func() bool { w.connect(t, 1, 20*time.Millisecond); return r.came.Load() > 0 })
	w.rest(t)
	return r
}

// connect makes n connections, each some time after the one before it.
func (w *waysWorld) connect(t *testing.T, n int, gap time.Duration) {
	t.Helper()
	to := netip.MustParseAddr(vip).As4()
	b := make([]byte, 20+8+4)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[16:], to[:])
	binary.BigEndian.PutUint16(b[22:], 53)
	binary.BigEndian.PutUint16(b[24:], 12)
	for range n {
		w.next++
		binary.BigEndian.PutUint32(b[12:], 10<<24|83<<16|w.next>>14)
		binary.BigEndian.PutUint16(b[20:], uint16(1024+w.next&0x3fff))
		must(t, unix.Sendto(w.raw, b, 0, &unix.SockaddrInet4{Addr: to}))
		time.Sleep(gap)
	}
}

// rest waits until the connections have left the table, where they would make
// the next ones dearer, and the master's last buffer is sent.
func (w *waysWorld) rest(t *testing.T) {
	t.Helper()
	services, err := w.client.Services()
	must(t, err)
	testnet.Await(t, "an empty table", func() bool {
		dests, err := w.client.Dests(services[0])
		must(t, err)
		return dests[0].Active+dests[0].Inactive == 0
	})
}

// A wayCost is what conns connections took of processor time: all in all, and of
// it the master thread and this process without what makes connections.
type wayCost struct {
	conns                int
	busy, master, reader time.Duration
	came, calls, dropped int
}

// beyond says what a record cost, where a connection alone costs what alone did.
func (c *wayCost) beyond(alone *wayCost) string {
	each := func(d time.Duration) time.Duration { return d / time.Duration(c.conns) }
	return fmt.Sprintf("%d of %d came, %d counted as dropped; the master thread took %v a record, the reader %v with %.1f datagrams a call",
		c.came, c.conns, c.dropped, each(c.master), each(c.reader-alone.reader), float64(c.came)/float64(max(1, c.calls)))
}

// cost measures n connections twice, since what else ran can only add to it.
func (w *waysWorld) cost(t *testing.T, r *wayReader, n int, gap time.Duration) *wayCost {
	t.Helper()
	a, b := w.once(t, r, n, gap), w.once(t, r, n, gap)
	if b.busy < a.busy {
		return b
	}
	return a
}

func (w *waysWorld) once(t *testing.T, r *wayReader, n int, gap time.Duration) *wayCost {
	t.Helper()
	runtime.LockOSThread() // getrusage tells its time, which makes the connections, from the reader's
	defer runtime.UnlockOSThread()
	came, calls, drops := r.counts(t)
	c := &wayCost{conns: n}
	before := spent(t)
	w.connect(t, n, gap)
	// The last record waits in its buffer for the next.
	for since := time.Now(); r != nil && int(r.came.Load()) < came+n-1 && time.Since(since) < 2*time.Second; {
		time.Sleep(time.Millisecond)
	}
	after := spent(t)
	c.busy = time.Duration(runtime.NumCPU())*after.at.Sub(before.at) - (after.idle - before.idle)
	c.master, c.reader = after.master-before.master, after.reader-before.reader
	w.rest(t)
	c.came, c.calls, c.dropped = r.counts(t)
	c.came, c.calls, c.dropped = c.came-came, c.calls-calls, c.dropped-drops
	return c
}

func (r *wayReader) counts(t *testing.T) (came, calls, drops int) {
	t.Helper()
	if r == nil {
		return 0, 0, 0
	}
	drops, err := r.drops()
	must(t, err)
	return int(r.came.Load()), int(r.calls.Load()), drops
}

// hindrances says which of the things that a director's host may have or do keep
// the records from the reader.
func (w *waysWorld) hindrances(t *testing.T, way tapWay, r *wayReader) {
	nothing := func() {}
	firewall := func(hook, rule string) func() {
		return func() {
			run(t, "nft", fmt.Sprintf("table ip ways { chain c { type filter hook %s priority 0; policy drop; %s; }; }", hook, rule))
		}
	}
	open := func() { run(t, "nft", "delete", "table", "ip", "ways") }
	for _, h := range []struct {
		name     string
		do, undo func()
	}{
		{"nothing", nothing, nothing},
		{"a strict reverse-path filter", func() { way.filter(t, "1") }, func() { way.filter(t, "0") }},
		{"a firewall that lets in by lo only", firewall("input", "iif lo accept"), open},
		{"one that lets in by lo from 127.0.0.0/8 only", firewall("input", "iif lo ip saddr 127.0.0.0/8 accept"), open},
		{"one that lets out by lo and to real servers only", firewall("output", "oif { lo, real0 } accept"), open},
		{"a VIP that left lo", func() { run(t, "ip", "addr", "del", otherVIP, "dev", "lo") }, func() { run(t, "ip", "addr", "add", otherVIP, "dev", "lo") }},
		{"the reader's death", r.die, nothing},
	} {
		h.do()
		came, logged := r.came.Load(), complaints(t)
		w.connect(t, waysAsked+1, 0) // the last one waits in its buffer
		for since := time.Now(); r.came.Load() < came+waysAsked && time.Since(since) < time.Second; {
			time.Sleep(10 * time.Millisecond)
		}
		h.undo()
		t.Logf("beside %s: %d of %d come, from %v; the kernel logs %d errors", h.name, min(r.came.Load()-came, waysAsked), waysAsked, r.from.Load(), complaints(t)-logged)
	}
}

// others says who else hears of records, and is heard.
func (w *waysWorld) others(t *testing.T, way tapWay, r *wayReader) {
	socket := joined(t, w.ns, way.iface)
	must(t, w.client.StartDaemon(Daemon{Role: Backup, Interface: "lo", SyncID: 82, Group: syncGroup, Port: waysPort, TTL: 1}))
	_, before := threadRan(t, "ipvs-b:")
	w.connect(t, waysAsked, 0)
	w.rest(t)
	_, after := threadRan(t, "ipvs-b:")
	must(t, w.client.StopDaemon(Backup))
	hears, came := heard(t, socket), r.came.Load()
	for range waysAsked {
		must(t, sendAs(65534, way.iface, waysPort, []byte{0}))
	}
	time.Sleep(time.Second)
	t.Logf("of %d records another socket hears %d, and a backup thread on lo, of the same port and another sync ID, runs %d times; of %d datagrams by another user %d come",
		waysAsked, hears, after-before, waysAsked, r.came.Load()-came)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// complaints is how many errors of the master thread are in the kernel's log.
func complaints(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("dmesg").Output()
	must(t, err)
	return strings.Count(string(out), "ip_vs_send_async error")
}
