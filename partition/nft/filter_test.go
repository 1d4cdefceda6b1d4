package nft_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/nft"
)

func ports(n int) []uint16 {
	ps := make([]uint16, n)
	for i := range ps {
		ps[i] = uint16(20000 + 37*i)
	}
	return ps
}

// expect returns for a source port which director must accept.
func (w *network) expect(cfg nft.Config, p uint16) int {
	b := hash(cfg).Bucket(netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), p), netip.AddrPortFrom(vip, port))
	for i, d := range w.directors {
		if d.owns.Has(b) {
			return i
		}
	}
	return -1
}

func (w *network) mustDivide(cfg nft.Config, ps []uint16, numbers []uint32) {
	w.t.Helper()
	wrong := 0
	for i, got := range w.arrived(numbers, 5*time.Second) {
		for k, copies := range got {
			want := 0
			if k == w.expect(cfg, ps[i]) {
				want = 1
			}
			if copies != want {
				if wrong++; wrong < 5 {
					w.t.Errorf("source port %d: %s got %d copies, want %d", ps[i], w.directors[k].name, copies, want)
				}
			}
		}
	}
	if wrong > 0 {
		w.t.Errorf("%d of %d datagrams fell to the wrong director", wrong, len(ps))
	}
}

// Every datagram and every connection has exactly the acceptor that Go
// predicts, and the switch never learns where the shared MAC is.
func TestDivide(t *testing.T) {
	for _, sense := range []partition.Sense{partition.SrcPort, partition.SrcAddr | partition.SrcPort, partition.SrcAddr | partition.DstAddr | partition.SrcPort | partition.DstPort} {
		t.Run(sense.String(), func(t *testing.T) {
			cfg := config(time.Minute)
			cfg.Sense = sense
			w := newNetwork(t, 3, cfg)
			w.beat(1)
			if _, err := w.greeting(20000, 5*time.Second); err != nil {
				t.Fatalf("with the ARP responder: %v", err)
			}
			ps := ports(600)
			w.mustDivide(cfg, ps, w.sendMany(ps, 64))
			for _, p := range ps[1:60] {
				who, err := w.greeting(p, 5*time.Second)
				if want := w.directors[w.expect(cfg, p)].name; who != want || err != nil {
					t.Errorf("connection from port %d: %q, %v; want %q", p, who, err, want)
				}
			}
			if fdb := w.sw.run("bridge fdb show br br0"); strings.Contains(fdb, sharedMAC.String()) {
				t.Errorf("the switch learned the shared MAC:\n%s", fdb)
			}
			total := uint64(0)
			for _, d := range w.directors {
				s, err := d.filter.Stats()
				if err != nil {
					t.Fatal(err)
				}
				if !s.Intact || s.Foreign < 600/4 || s.Accepted == 0 || s.Own != 0 || s.Open != d.owns || s.LeaseLeft <= 0 {
					t.Errorf("%s: %+v", d.name, s)
				}
				total += s.Accepted
			}
			if total < 660 {
				t.Errorf("%d packets accepted in all", total)
			}
		})
	}
}

// A datagram in fragments has one acceptor too, the one of its ports.
func TestFragments(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 3, cfg)
	w.resolve()
	w.beat(1)
	ps := ports(60)
	w.mustDivide(cfg, ps, w.sendMany(ps, 8000))
	for _, d := range w.directors {
		if s, err := d.filter.Stats(); err != nil || s.Fragments < 60 {
			t.Errorf("%s: %d fragments, %v", d.name, s.Fragments, err)
		}
	}
}

// An echo request has one answer, not one from each director.
func TestPing(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 3, cfg)
	w.resolve()
	w.beat(1)
	b := hash(cfg).AddrBucket(netip.MustParseAddr("10.9.0.1"))
	for seq, answers := range w.ping(3) {
		if answers != 1 {
			t.Errorf("request %d: %d answers", seq, answers)
		}
	}
	for _, d := range w.directors {
		s, err := d.filter.Stats()
		if ours := d.owns.Has(b); err != nil || ours != (s.Accepted >= 3) {
			t.Errorf("%s accepted %d, bucket %d is its own: %v; %v", d.name, s.Accepted, b, ours, err)
		}
	}
}

// Acceptance ends by itself: the deadline counts from arming, and nothing sent
// later than that deadline, by a wide margin, has an acceptor.
func TestLeaseLapses(t *testing.T) {
	const lease, slack = 2 * time.Second, 150 * time.Millisecond
	w := newNetwork(t, 2, config(lease))
	w.resolve()
	before := w.send(20001, 64)
	armed := time.Now()
	w.beat(1)
	type shot struct {
		number uint32
		sent   time.Duration // after arming
	}
	var early, late []shot
	for {
		at := time.Since(armed)
		s := shot{w.send(20001, 64), at}
		switch {
		case at < lease/3:
			early = append(early, s)
		case at > lease+slack:
			late = append(late, s)
		}
		if len(late) == 20 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	count := func(n uint32) int {
		return w.directors[0].copies(n) + w.directors[1].copies(n)
	}
	w.arrived([]uint32{early[0].number}, 5*time.Second)
	if count(before) != 0 {
		t.Error("accepted without a lease")
	}
	for _, s := range early {
		if time.Since(armed) > lease && count(s.number) == 0 {
			t.Errorf("sent %v after arming: not accepted", s.sent)
		}
	}
	for _, s := range late {
		if count(s.number) != 0 {
			t.Errorf("sent %v after arming: accepted", s.sent)
		}
	}
	if s, err := w.directors[0].filter.Stats(); err != nil || s.LeaseLeft != 0 || s.Lapsed == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// What was never armed, or armed too long ago, admits nothing.
func TestConfirmLate(t *testing.T) {
	w := newNetwork(t, 1, config(300*time.Millisecond))
	w.resolve()
	f := w.directors[0].filter
	mustRefuse := func(what string, n uint64) {
		t.Helper()
		if err := f.Confirm(n); !errors.Is(err, nft.ErrNotArmed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	mustRefuse("before any was armed", 1)
	if err := f.Arm(5); err != nil {
		t.Fatal(err)
	}
	mustRefuse("an older one", 4)
	mustRefuse("a newer one", 6)
	if err := f.Arm(5); !errors.Is(err, nft.ErrNotArmed) {
		t.Errorf("armed twice: %v", err)
	}
	time.Sleep(200 * time.Millisecond) // armed for 100 ms
	mustRefuse("after it lapsed", 5)
	w.send(20001, 64)
	s, err := f.Stats()
	if err != nil || s.Accepted != 0 || s.Confirmed != 0 || s.LeaseLeft != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Renewed in time, the lease never lapses.
func TestRenewed(t *testing.T) {
	cfg := config(3 * time.Second)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	ps := ports(8)
	end := time.Now().Add(4 * time.Second)
	var sent []uint32
	var from []uint16
	for n := uint64(1); time.Now().Before(end); n++ {
		w.beat(n)
		sent = append(sent, w.sendMany(ps, 64)...)
		from = append(from, ps...)
		time.Sleep(50 * time.Millisecond)
	}
	w.mustDivide(cfg, from, sent)
}

// A flush of the ruleset closes: nothing is accepted, Verify and Arm say so,
// and Reset gives a closed table that serves again when told.
func TestFlushRuleset(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	ps := ports(40)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
	for _, d := range w.directors {
		if ok, err := d.filter.Verify(); !ok || err != nil {
			t.Fatalf("%s before: %v, %v", d.name, ok, err)
		}
		d.run("nft flush ruleset")
	}
	for _, size := range []int{64, 8000} {
		for i, got := range w.arrived(w.sendMany(ps, size), 300*time.Millisecond) {
			for k, copies := range got {
				if copies != 0 {
					t.Errorf("port %d, %d bytes: %s accepts without a table", ps[i], size, w.directors[k].name)
				}
			}
		}
	}
	for _, d := range w.directors {
		if ok, err := d.filter.Verify(); ok || err != nil {
			t.Errorf("%s after: %v, %v", d.name, ok, err)
		}
		if err := d.filter.Arm(2); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: arm: %v", d.name, err)
		}
		if err := d.filter.Confirm(2); !errors.Is(err, nft.ErrNotArmed) {
			t.Errorf("%s: confirm: %v", d.name, err)
		}
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: apply: %v", d.name, err)
		}
		if _, err := d.filter.Stats(); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: stats: %v", d.name, err)
		}
		if err := d.filter.Reset(); err != nil {
			t.Fatal(err)
		}
		d.beat(3)
	}
	for i, got := range w.arrived(w.sendMany(ps, 64), 300*time.Millisecond) {
		if got[0]+got[1] != 0 {
			t.Errorf("port %d: accepted after Reset, before Apply", ps[i])
		}
	}
	for _, d := range w.directors {
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); err != nil {
			t.Fatal(err)
		}
		d.beat(4)
	}
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
}

// Somebody who edits the table is noticed.
func TestVerify(t *testing.T) {
	for _, edit := range []string{
		"nft add element inet saru open { 7 }",
		"nft add rule inet saru judge_udp return",
		"nft flush chain inet saru judge",
		"nft delete chain inet saru input",
		"nft delete table netdev saru",
	} {
		t.Run(edit, func(t *testing.T) {
			w := newNetwork(t, 1, config(time.Second))
			d := w.directors[0]
			if err := d.filter.Apply(nft.Desired{}); err != nil {
				t.Fatal(err)
			}
			d.run("nft add table inet operators")
			if ok, err := d.filter.Verify(); !ok || err != nil {
				t.Fatalf("before: %v, %v", ok, err)
			}
			d.run(edit)
			if ok, err := d.filter.Verify(); ok || err != nil {
				t.Errorf("after: %v, %v", ok, err)
			}
		})
	}
}

// Beside others who reload a large ruleset in a loop, the lease neither drops
// nor lives longer.
func TestForeignReload(t *testing.T) {
	const lease = 3 * time.Second
	cfg := config(lease)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	script := filepath.Join(t.TempDir(), "blocklist.nft")
	var b strings.Builder
	b.WriteString("table inet blocklist\ndelete table inet blocklist\ntable inet blocklist {\nset s {\ntype ipv4_addr\nelements = {")
	for i := range 20000 {
		fmt.Fprintf(&b, "172.%d.%d.%d,", 16+i>>14, i>>7&127, i&127)
	}
	b.WriteString("172.30.0.1 }\n}\n}\n")
	if err := os.WriteFile(script, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, d := range w.directors[:1] {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					d.run("nft -f " + script)
				}
			}
		})
	}
	ps := ports(4)
	var sent []uint32
	var from []uint16
	var armed time.Time
	for n, end := uint64(1), time.Now().Add(2*lease); time.Now().Before(end); n++ {
		armed = time.Now()
		w.beat(n)
		sent = append(sent, w.sendMany(ps, 64)...)
		from = append(from, ps...)
		time.Sleep(30 * time.Millisecond)
	}
	w.mustDivide(cfg, from, sent)
	time.Sleep(time.Until(armed.Add(lease + 150*time.Millisecond)))
	for i, got := range w.arrived(w.sendMany(ps, 64), 200*time.Millisecond) {
		if got[0]+got[1] != 0 {
			t.Errorf("port %d: accepted %v after arming", ps[i], time.Since(armed))
		}
	}
	close(stop)
	wg.Wait()
	if ok, err := w.directors[0].filter.Verify(); !ok || err != nil {
		t.Errorf("verify: %v, %v", ok, err)
	}
}

// Frames for the VIP to a director's own MAC reached nobody else: they are
// served by it, counted, and their sender is named.
func TestOwnMAC(t *testing.T) {
	w := newNetwork(t, 2, config(time.Minute))
	d := w.directors[1]
	mac := d.mac("eth0")
	w.client.run("ip neigh replace 10.9.0.100 lladdr " + mac + " dev eth0 nud permanent")
	ps := ports(20)
	for i, got := range w.arrived(w.sendMany(ps, 64), 5*time.Second) {
		if got[0] != 0 || got[1] != 1 {
			t.Errorf("port %d: %v", ps[i], got)
		}
	}
	s, err := d.filter.Stats()
	if err != nil || s.Own < 20 || s.OwnSender.String() != w.client.mac("eth0") {
		t.Errorf("%+v, %v; sender should be %s", s, err, w.client.mac("eth0"))
	}
}

// The backstop silences a connection that nobody knows while its bucket is
// settling, and leaves it to the stack's reset afterwards.
func TestBackstop(t *testing.T) {
	cfg := config(time.Minute)
	cfg.Backstop = true
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	d := w.directors[0]
	all := partition.FullSet(cfg.Buckets)
	if err := d.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := d.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	h := hash(cfg)
	b := h.Bucket(netip.AddrPortFrom(vip, 20001), netip.AddrPortFrom(vip, port))
	if s, err := d.filter.Stats(); err != nil || s.Settling != all {
		t.Fatalf("%v, %v", s.Settling, err)
	}
	// The last ACK of the handshake is in the middle of a connection, so
	// without IPVS to take it nothing gets beyond the SYN.
	if who, err := w.greeting(20001, 300*time.Millisecond); who != "" {
		t.Errorf("%q, %v", who, err)
	}
	if s, err := d.filter.Stats(); err != nil || s.Silenced == 0 {
		t.Errorf("silenced %d, %v", s.Silenced, err)
	}
	one := partition.SetOf(b)
	if err := d.filter.Settle(&one, 0); err != nil {
		t.Fatal(err)
	}
	if s, err := d.filter.Stats(); err != nil || s.Settling != all.Minus(one) {
		t.Errorf("%v, %v", s.Settling, err)
	}
	if err := d.filter.Settle(&all, 0); err != nil {
		t.Fatal(err)
	}
	if who, err := w.greeting(20002, 5*time.Second); who != d.name {
		t.Errorf("%q, %v", who, err)
	}
}

// One daemon to a namespace; and Close leaves nothing.
func TestOpenClose(t *testing.T) {
	w := newNetwork(t, 0, config(time.Second))
	h := newHost(t, "d1")
	h.plug(w.sw, "10.9.0.2/24")
	before := h.run("ip addr show dev lo") + h.run("nft list ruleset")
	var f *nft.Filter
	h.do(func() (err error) {
		f, err = nft.Open(config(time.Second))
		return err
	})
	if err := h.try(func() error { _, err := nft.Open(config(time.Second)); return err }); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second daemon: %v", err)
	}
	if tables := h.run("nft list tables"); tables != "table inet saru\ntable netdev saru\n" {
		t.Errorf("tables: %q", tables)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := h.run("ip addr show dev lo") + h.run("nft list ruleset"); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	// A table that a crash left, with everything open, is replaced.
	h.run("nft add table inet saru")
	h.run("nft add chain inet saru mine { type filter hook input priority 0 ; }")
	h.do(func() (err error) {
		f, err = nft.Open(config(time.Second))
		return err
	})
	if rules := h.run("nft list chains"); strings.Contains(rules, "mine") {
		t.Errorf("not replaced:\n%s", rules)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBadConfig(t *testing.T) {
	h := newHost(t, "d1")
	for what, change := range map[string]func(*nft.Config){
		"no VIP":             func(c *nft.Config) { c.VIPs = nil },
		"IPv6":               func(c *nft.Config) { c.VIPs = []netip.Addr{netip.IPv6Loopback()} },
		"multicast MAC":      func(c *nft.Config) { c.MAC = []byte{1, 0, 0x5e, 0, 0, 1} },
		"buckets":            func(c *nft.Config) { c.Buckets = 100 },
		"sense":              func(c *nft.Config) { c.Sense = 0 },
		"lease":              func(c *nft.Config) { c.Lease = time.Millisecond },
		"unknown interface":  func(c *nft.Config) { c.Interface = "none" },
		"share id too large": func(c *nft.Config) { c.ShareID = 256 },
	} {
		cfg := config(time.Second)
		cfg.Interface = "lo"
		change(&cfg)
		if err := h.try(func() error { _, err := nft.Open(cfg); return err }); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if rules := h.run("nft list ruleset"); rules != "" {
		t.Errorf("touched the kernel:\n%s", rules)
	}
}

func TestProbe(t *testing.T) {
	h := newHost(t, "probe")
	if err := h.try(nft.Probe); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if rules := h.run("nft list ruleset"); rules != "" {
		t.Errorf("left behind:\n%s", rules)
	}
}

// Arm and Confirm are on the path of every heartbeat.
func TestNoAllocations(t *testing.T) {
	w := newNetwork(t, 1, config(time.Minute))
	f, n := w.directors[0].filter, uint64(0)
	allocs := testing.AllocsPerRun(100, func() {
		n++
		if f.Arm(n) != nil || f.Confirm(n) != nil {
			t.Fatal("refused")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
