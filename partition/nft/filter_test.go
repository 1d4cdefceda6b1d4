package nft_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
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

// Acceptance ends by itself. The deadline counts from arming, however late in
// its time the heartbeat is confirmed: nothing that is sent after it has an
// acceptor.
func TestLeaseLapses(t *testing.T) {
	const lease, jiffies = 2 * time.Second, 60 * time.Millisecond
	cfg := config(lease)
	w := newNetwork(t, 1, cfg)
	w.resolve()
	d := w.directors[0]
	before := w.send(20001, 64)
	if err := d.filter.Arm(1); err != nil {
		t.Fatal(err)
	}
	armed := time.Now() // not before the kernel's
	time.Sleep(lease / 6)
	if err := d.filter.Confirm(1); err != nil {
		t.Skipf("machine too slow: %v", err)
	}
	first := w.send(20001, 64)
	if got := w.arrived([]uint32{first}, lease)[0][0]; got != 1 && time.Since(armed) < lease/2 {
		t.Errorf("%d copies under a lease", got)
	}
	var late []uint32
	for len(late) < 30 {
		after := time.Since(armed)
		number := w.send(20001, 64)
		if after > lease+jiffies {
			late = append(late, number)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d.copies(before) != 0 {
		t.Error("accepted without a lease")
	}
	for i, number := range late {
		if d.copies(number) != 0 {
			t.Errorf("datagram %d sent after the deadline: accepted", i)
		}
	}
	if s, err := d.filter.Stats(); err != nil || s.LeaseLeft != 0 || s.Lapsed == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A director that has a bucket in rest only carries on with its connections
// and opens nothing.
func TestClasses(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	d := w.directors[0]
	c, err := w.dial(20001, port, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Fatalf("%q, %v", who, err)
	}
	if err := d.filter.Apply(nft.Desired{Rest: d.owns}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Errorf("the open connection: %q, %v", who, err)
	}
	if got := w.arrived([]uint32{w.send(20001, 64), w.send(20001, 8000)}, 200*time.Millisecond); got[0][0]+got[1][0] != 0 {
		t.Error("UDP accepted")
	}
	if who, err := w.greeting(20002, 300*time.Millisecond); err == nil {
		t.Errorf("a new connection: %q", who)
	}
	if got := w.ping(1); got[0] != 0 {
		t.Error("echo request answered")
	}
	if err := d.filter.Apply(nft.Desired{Open: d.owns}); err == nil {
		t.Error("rest without open was applied")
	}
}

// Either half of the table alone admits nothing.
func TestHalfTable(t *testing.T) {
	for _, half := range []string{"inet", "netdev"} {
		t.Run(half, func(t *testing.T) {
			w := newNetwork(t, 1, config(time.Minute))
			w.resolve()
			w.beat(1)
			d := w.directors[0]
			if got := w.arrived([]uint32{w.send(20001, 64)}, 5*time.Second); got[0][0] != 1 {
				t.Fatal("not accepted with both")
			}
			d.run("nft delete table " + half + " saru")
			if got := w.arrived([]uint32{w.send(20001, 64), w.send(20001, 8000)}, 200*time.Millisecond); got[0][0]+got[1][0] != 0 {
				t.Error("accepted")
			}
			if ok, err := d.filter.Verify(); ok || err != nil {
				t.Errorf("verify: %v, %v", ok, err)
			}
		})
	}
}

// Where something else makes the frames this host's, and our ingress chain is
// gone, the second judgement still divides them.
func TestDefaultDeny(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	for _, d := range w.directors {
		d.run("nft delete chain inet saru ingress")
		d.run("nft add table netdev other")
		d.run(`nft add chain netdev other host { type filter hook ingress device "eth0" priority 100 ; }`)
		d.run("nft add rule netdev other host meta pkttype set host")
	}
	ps := ports(100)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
	for _, d := range w.directors {
		if err := d.filter.Apply(nft.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, got := range w.arrived(w.sendMany(ps, 64), 200*time.Millisecond) {
		if got[0]+got[1] != 0 {
			t.Errorf("port %d: accepted by nobody's rule", ps[i])
		}
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

// Nobody else can arm a heartbeat: root lacks the secret, and who has read it
// out of the rules lacks the uid.
func TestForgery(t *testing.T) {
	w := newNetwork(t, 1, config(time.Minute))
	d := w.directors[0]
	armed := func() uint64 {
		s, err := d.filter.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.Armed
	}
	secret := regexp.MustCompile(`@th,64,128 0x([0-9a-f]+)`).FindStringSubmatch(d.run("nft list chain inet saru lease"))
	if secret == nil {
		t.Skip("this nft prints the rules otherwise")
	}
	known, err := hex.DecodeString(strings.Repeat("0", 32-len(secret[1])) + secret[1])
	if err != nil {
		t.Fatal(err)
	}
	forge := func(secret []byte, uid uint32) {
		var text strings.Builder
		for _, b := range append(secret[:len(secret):len(secret)], 'A', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9) {
			fmt.Fprintf(&text, `\x%02x`, b)
		}
		d.do(func() error {
			// By dd in one piece: bash itself writes once per line, and a
			// secret may hold a newline.
			c := exec.Command("bash", "-c", "printf '"+text.String()+"' | dd bs=28 count=1 iflag=fullblock status=none > /dev/udp/127.83.65.82/511")
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			c.Run() // a drop in the output hook is its error
			return nil
		})
	}
	before := armed()
	forge(make([]byte, 16), 0)
	forge(known, 65534)
	if got := armed(); got != before {
		t.Errorf("%d forged heartbeats armed", got-before)
	}
	forge(known, 0)
	if got := armed(); got != before+1 {
		t.Errorf("with secret and uid %d heartbeats armed: the test proves nothing", got-before)
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

// Apply gives the wanted buckets whatever somebody else made of the sets.
func TestApplyRepairs(t *testing.T) {
	w := newNetwork(t, 1, config(time.Second))
	d := w.directors[0]
	for _, edit := range []string{"flush set inet saru open", "add element inet saru open { 5 }", "delete element inet saru rest { 7 }"} {
		if err := d.filter.Apply(nft.Desired{Open: partition.SetOf(7), Rest: partition.SetOf(7, 8)}); err != nil {
			t.Fatal(err)
		}
		d.run("nft " + edit)
		want := nft.Desired{Open: partition.SetOf(1, 9), Rest: partition.SetOf(1, 8, 9)}
		if err := d.filter.Apply(want); err != nil {
			t.Fatalf("after %s: %v", edit, err)
		}
		if s, err := d.filter.Stats(); err != nil || s.Open != want.Open || s.Rest != want.Rest || !s.Intact {
			t.Errorf("after %s: open %v, rest %v, intact %v, %v", edit, s.Open, s.Rest, s.Intact, err)
		}
	}
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

// A broadcast frame for the VIP reaches every director; none may take it.
func TestBroadcastFrame(t *testing.T) {
	w := newNetwork(t, 2, config(time.Minute))
	w.beat(1)
	w.client.run("ip neigh replace 10.9.0.100 lladdr ff:ff:ff:ff:ff:ff dev eth0 nud permanent")
	check := func(when string) {
		t.Helper()
		for _, got := range w.arrived(w.sendMany(ports(8), 64), 200*time.Millisecond) {
			if got[0]+got[1] != 0 {
				t.Errorf("%s: %v", when, got)
			}
		}
	}
	check("whole")
	for _, d := range w.directors {
		d.run("nft delete chain inet saru ingress")
	}
	check("without the ingress chain")
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
	// without IPVS to take it the server never hears it, and does not greet.
	if c, err := w.dial(20001, port, 5*time.Second); err != nil {
		t.Error(err)
	} else {
		if who, err := hear(c, 300*time.Millisecond); who != "" {
			t.Errorf("%q, %v", who, err)
		}
		c.Close()
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

// With IPVS: a connection whose bucket moves to a director that does not know
// it hears nothing while the bucket settles, and a reset after that.
func TestIPVS(t *testing.T) {
	const service = 4343
	cfg := config(time.Minute)
	cfg.Backstop = true
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	if err := w.directors[0].try(func() error { return exec.Command("ipvsadm", "-L").Run() }); err != nil {
		t.Skip("no IPVS in this kernel, or no ipvsadm")
	}
	real := &director{host: newHost(t, "r1"), heard: make(map[uint32]int)}
	real.plug(w.sw, "10.9.0.200/24")
	real.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("1"), 0) })
	real.run("ip addr add 10.9.0.100/32 dev lo")
	for _, d := range w.directors {
		for _, proto := range []string{"-t", "-u"} {
			d.run(fmt.Sprintf("ipvsadm -A %s %v:%d -s rr", proto, vip, service))
			d.run(fmt.Sprintf("ipvsadm -a %s %v:%d -r 10.9.0.200 -g", proto, vip, service))
		}
	}
	saved := port
	port = service
	real.serve()
	port = saved

	d1, d2 := w.directors[0], w.directors[1]
	all := partition.FullSet(cfg.Buckets)
	share := func(d *director, s partition.Set) {
		t.Helper()
		if err := d.filter.Apply(nft.Desired{Open: s, Rest: s}); err != nil {
			t.Fatal(err)
		}
	}
	share(d2, partition.Set{})
	share(d1, all)
	c, err := w.dial(20001, service, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := hear(c, 10*time.Second); who != "r1" {
		t.Fatalf("%q, %v", who, err)
	}
	if err := d2.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	share(d1, partition.Set{})
	share(d2, all)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s, err := d2.filter.Stats(); err != nil || s.Silenced > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing was silenced")
		}
	}
	var timeout net.Error
	if who, err := hear(c, 300*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("while settling: %q, %v; want silence", who, err)
	}
	share(d2, partition.Set{})
	share(d1, all)
	if who, err := hear(c, 20*time.Second); who != "r1" {
		t.Fatalf("back on the director that knows it: %q, %v", who, err)
	}
	if err := d2.filter.Settle(&all, 0); err != nil {
		t.Fatal(err)
	}
	share(d1, partition.Set{})
	share(d2, all)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if who, err := hear(c, 20*time.Second); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("settled: %q, %v; want a reset", who, err)
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

func BenchmarkRenew(b *testing.B) {
	w := newNetwork(b, 1, config(time.Minute))
	f, n := w.directors[0].filter, uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := f.Arm(n); err != nil {
			b.Fatal(err)
		}
		if err := f.Confirm(n); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, buckets := range []int{256, 1024, 4096} {
		b.Run(fmt.Sprint(buckets), func(b *testing.B) {
			cfg := config(time.Minute)
			cfg.Buckets = buckets
			w := newNetwork(b, 1, cfg)
			f := w.directors[0].filter
			all := partition.FullSet(buckets)
			half := partition.FullSet(buckets / 2)
			d := [2]nft.Desired{{Open: all, Rest: all}, {Open: half, Rest: all}}
			n := 0
			for b.Loop() {
				n++
				if err := f.Apply(d[n%2]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
