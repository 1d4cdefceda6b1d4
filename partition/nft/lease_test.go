package nft_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"saru/partition/nft"
)

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
	w := newNetwork(b, 1, config(600*time.Millisecond)) // a longer one fills the set
	f, n := w.directors[0].filter, uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := f.Arm(n); err != nil {
			b.Fatal(err)
		}
		if err := f.Confirm(n); err != nil && !errors.Is(err, nft.ErrNotArmed) { // too late on a busy machine
			b.Fatal(err)
		}
	}
}
