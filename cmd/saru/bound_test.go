package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Invariants 1 to 3 as packet captures see them. Whatever is done to a
// director, each datagram it accepts arrived there within a lease of the
// sending of a heartbeat that somebody had granted by then, or that needed
// nobody's grant, since the others had fallen silent; no datagram is accepted
// twice; and soon all are accepted again.

// jiffies is by how much a kernel timer may be late: 6 at 250 Hz.
const jiffies = 24 * time.Millisecond

// A victim is a director that things are done to.
type victim struct {
	*node
	capture *capture
	age     func(time.Time) time.Duration // of the grant that a packet was accepted under
	clocks  *standstills
	mark    time.Time
	oldest  time.Duration
	stood   time.Duration // the most that the clocks' standing still was needed for
}

func (n *node) victim() *victim {
	c := n.capture()
	v := &victim{node: n, capture: c, age: c.grantAge, clocks: n.watchClocks()}
	time.Sleep(2 * pace.lease) // all that is live now was granted under its eyes
	return v
}

// labWithVictim returns three directors under traffic, which stop ends, and the
// one that things are done to.
func labWithVictim(t *testing.T) (l *lab, v *victim, stop func()) {
	t.Helper()
	l = newLab(t, 3, "")
	l.start()
	stop = l.traffic()
	return l, l.nodes[1].victim(), stop
}

// begin begins one accident.
func (v *victim) begin() {
	v.mark = time.Now()
	v.capture.forget(v.mark.Add(-2 * pace.lease))
}

// bound asserts that what v has accepted since begin was accepted under a live
// lease.
func (v *victim) bound(what string) {
	v.Helper()
	late := 0
	for _, t := range v.seen.ArrivedAt(v.name, v.mark) {
		age := v.age(t)
		v.oldest = max(v.oldest, age)
		if !v.overdue(t, age) {
			continue
		}
		if late++; late <= 5 {
			v.Errorf("%s: %s accepted a datagram at %s, when the newest heartbeat granted to it was sent %v before; the clocks had stood still for %v",
				what, v.name, clock(t), age, v.clocks.at(t))
		}
	}
	if late > 0 {
		v.Errorf("%s: so it did with %d datagrams in all; the capture missed %d frames", what, late, v.capture.lost())
	}
}

// overdue reports whether no lease can have lived at t, when the newest grant
// was so old. An emulated machine's clocks stand still now and then.
func (v *victim) overdue(t time.Time, age time.Duration) bool {
	over := age - pace.lease - jiffies
	if over <= 0 || !emulated {
		return over > 0
	}
	stood := v.clocks.at(t)
	if over <= stood {
		v.stood = max(v.stood, over)
	}
	return over > stood
}

// instants is how many times something is done to a director, each time at
// another moment of its work.
func instants(brief, all int) int {
	switch {
	case emulated:
		return brief / 2
	case testing.Short():
		return brief
	}
	return all
}

// random lets up to an interval pass, so that an accident meets any moment of
// the daemon's work.
func random(most time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(most))) }

func TestBound(t *testing.T) {
	l, v, stop := labWithVictim(t)
	defer stop()

	for i, n := 0, instants(4, 40); i < n; i++ {
		// From a moment that nobody notices to one that costs it the share.
		hold := 3 * pace.lease * time.Duration(i+1) / time.Duration(n)
		v.accident(fmt.Sprintf("SIGSTOP for %v", hold.Round(time.Millisecond)), func() {
			v.signal(syscall.SIGSTOP)
			time.Sleep(hold)
			v.signal(syscall.SIGCONT)
		})
		if hold > pace.lease && i < n-1 {
			v.anew() // who has to close again and again waits longer each time
		}
	}
	for range instants(2, 20) {
		v.accident("SIGKILL", func() {
			v.kill()
			l.until("taken over", l.shared(2))
			v.start()
		})
	}
	for range instants(2, 20) {
		v.accident("nft flush ruleset", func() { v.run("nft", "flush", "ruleset") })
	}
	stop()
	l.neverTwice()
	t.Logf("the oldest grant that a datagram was accepted under was %v old; the lease is %v, and its clocks had stood still for up to %v more than that", v.oldest, pace.lease, v.stood)
}

// Who is left alone, since all others stand still at once as those of a busy
// machine do, goes on without anybody's grant, and ends with its own heartbeats.
func TestBoundOfTheLast(t *testing.T) {
	l, v, stop := labWithVictim(t)
	defer stop()
	v.begin()
	l.nodes[0].signal(syscall.SIGSTOP)
	l.nodes[2].signal(syscall.SIGSTOP)
	time.Sleep(5 * pace.lease)
	if by := l.seen.Between(v.mark.Add(3*pace.lease), time.Now()).By; by[v.name] == 0 || len(by) > 1 {
		t.Errorf("three leases after the others stood still %v accept; want %s alone", by, v.name)
	}
	v.signal(syscall.SIGSTOP)
	time.Sleep(3 * pace.lease)
	for _, n := range l.nodes {
		n.signal(syscall.SIGCONT)
	}
	l.until("all share again", l.shared(3))
	v.bound("the others stand still")
	stop()
	l.neverTwice()
	t.Logf("the oldest grant was %v old", v.oldest)
}

// accident has something happen to v at a random moment, and asserts the bound
// until all three share again.
func (v *victim) accident(what string, happen func()) {
	v.Helper()
	v.begin()
	time.Sleep(random(pace.lease / 3))
	happen()
	time.Sleep(2 * pace.lease)
	v.until("all share again after "+what, v.shared(len(v.nodes)))
	v.soon(what, v.mark)
	v.bound(what)
}

// anew restarts v as planned. It does not look for what is left: beside reloads
// nft waits for minutes for a ruleset that nobody changes while it reads.
func (v *victim) anew() {
	v.Helper()
	v.signal(syscall.SIGTERM)
	if code := v.wait(); code != 0 {
		v.Errorf("exit status %d after SIGTERM", code)
	}
	v.start()
	v.until("all share after a restart", v.shared(len(v.nodes)))
}

// run runs a command on the director, beside the daemon.
func (n *node) run(args ...string) {
	n.Helper()
	n.must(in(n.ns, func() error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %w: %.500s", args, err, out)
		}
		return nil
	}))
}

// blocklist writes a script that replaces a set of many elements.
func (l *lab) blocklist(elements int) string {
	var b strings.Builder
	b.WriteString("table inet blocklist\ndelete table inet blocklist\ntable inet blocklist {\nset s {\ntype ipv4_addr\nelements = {")
	for i := range elements {
		fmt.Fprintf(&b, "172.%d.%d.%d,", 16+i>>16, i>>8&255, i&255)
	}
	b.WriteString("172.30.0.1 }\n}\n}\n")
	path := filepath.Join(l.dir, "blocklist.nft")
	l.must(os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// Somebody else's transactions in a loop do not make the lease longer, though
// they hold the kernel's lock, and a processor, for half a second at a time.
// They do not drop it either, as long as the machine has another processor
// for the engine; on a busy one that is only logged.
func TestBoundBesideReloads(t *testing.T) {
	l := newLab(t, 2, "")
	l.start()
	stop := l.traffic()
	defer stop()
	v := l.nodes[0].victim()
	// When the only other director is held up as well, this one goes on alone,
	// and what it sends needs nobody's grant.
	v.age = v.capture.sentAge
	script, quit := l.blocklist(pace.elements), make(chan struct{})
	var reloads int
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			if err := in(v.ns, exec.Command("nft", "-f", script).Run); err == nil {
				reloads++
			}
		}
	})
	before, err := v.status()
	l.must(err)
	v.begin()
	time.Sleep(time.Duration(instants(6, 30)) * time.Second)
	v.bound("reloads")
	gap := l.report("reloads", v.mark).Gap
	after, err := v.status()
	l.must(err)
	t.Logf("beside reloads: %d fences, a gap of %v, the worst tick %g ms late, %d turns by stand-ins",
		after.Protocol.Fences-before.Protocol.Fences, gap.Round(time.Millisecond), after.Engine.WorstTickMS, after.Engine.StandInTurns)
	// Stopped among them, it stops accepting in time all the same.
	for i, n := 0, instants(2, 10); i < n; i++ {
		v.accident("SIGSTOP among reloads", func() {
			v.signal(syscall.SIGSTOP)
			time.Sleep(2 * pace.lease)
			v.signal(syscall.SIGCONT)
		})
		if i < n-1 {
			v.anew()
		}
	}
	close(quit)
	wg.Wait()
	stop()
	l.neverTwice()
	if reloads == 0 {
		t.Error("no reload was done: the test proves nothing")
	}
	t.Logf("%d reloads of %d elements; the oldest grant in use was %v old", reloads, pace.elements, v.oldest)
}

// A firewall that stops all of IP on a director, but for the service, leaves
// its heartbeats their way as frames: it is not taken for dead.
func TestFirewallIsNotDeath(t *testing.T) {
	l, v, stop := labWithVictim(t)
	defer stop()
	v.begin()
	v.run("nft", fmt.Sprintf("add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; };"+
		"add rule inet fw in udp dport %d accept; add chain inet fw out { type filter hook output priority 0; policy drop; }", service))
	time.Sleep(5 * pace.lease)
	l.until("three share still", l.shared(3))
	v.bound("a firewall")
	l.seamless("a firewall", v.mark)
	if by := l.seen.Between(v.mark.Add(3*pace.lease), time.Now()).By; by[v.name] == 0 {
		t.Errorf("%s accepts nothing any more: %v", v.name, by)
	}
	stop()
	l.neverTwice()
}

// One frame from the shared MAC makes the switch send all clients' frames to
// one port. Who hears no such frames any more gives its share to who does.
func TestPoisonedSwitch(t *testing.T) {
	l := newLab(t, 3, "")
	l.start()
	stop := l.traffic()
	defer stop()
	there, v := l.nodes[0], l.nodes[1].victim()
	v.begin()
	l.must(in(there.ns, func() error { return sendFrom(sharedMAC) }))
	l.until("who gets the frames has all", func(open map[string]int) bool { return open["d1"] == 256 && len(open) == 1 })
	l.soon("a poisoned switch", v.mark)
	v.bound("a poisoned switch")
	l.until("the status says why", func(map[string]int) bool {
		st, err := v.status()
		return err == nil && strings.Contains(st.Why, "hears no frames to the shared MAC")
	})
	v.begin()
	l.must(in(l.sw, func() error {
		return exec.Command("bridge", "fdb", "del", sharedMAC.String(), "dev", "d1", "master").Run()
	}))
	l.until("three share again", l.shared(3))
	l.soon("the switch has forgotten", v.mark)
	stop()
	l.neverTwice()
}

var sharedMAC = net.HardwareAddr{0x02, 0x00, 0x5e, 0x00, 0x01, 0x01}

// sendFrom sends one frame from a MAC to nobody.
func sendFrom(mac net.HardwareAddr) error {
	frame := append(net.HardwareAddr{2, 0, 0, 0, 0, 9}, mac...)
	frame = append(frame, 0x88, 0xb6) // local experimental 2 (IEEE Std 802)
	return sendFrame(append(frame, make([]byte, 46)...))
}

// sendFrame sends an Ethernet frame out of eth0.
func sendFrame(frame []byte) error {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6})
}
