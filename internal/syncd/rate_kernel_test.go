package syncd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/testnet"
	"saru/ipvs"
)

// rateFlows is how many connections a way to synchronise is given to tell.
const rateFlows = 12_000

// TestMeasureRate sends new UDP flows through a director, as fast as they are
// made, and looks how long it takes until the other director's kernel has them
// all and what processor time that takes, by the kernel's own sync threads and
// by syncd on them. What the flows cost without any synchronisation is measured
// first, and taken off.
func TestMeasureRate(t *testing.T) {
	if os.Getenv("SARU_MEASURE") == "" {
		t.Skip("a measurement; set SARU_MEASURE=1")
	}
	alone := measureRate(t, "no synchronisation", func(*realLAN) {})
	threads := measureRate(t, "the kernel's sync threads", func(l *realLAN) {
		for i := range 2 {
			l.run(i, "sysctl", "-qw", "net.ipv4.vs.sync_threshold=0 0", "net.ipv4.vs.sync_refresh_period=10", "net.ipv4.vs.sync_retries=1")
			for _, role := range []string{"master", "backup"} {
				l.run(i, "ipvsadm", "--start-daemon", role, "--mcast-interface", "eth0", "--syncid", "1")
			}
		}
	})
	syncd := measureRate(t, "syncd on the sync threads", func(l *realLAN) {
		l.more = "[kernel]\nsource = \"daemon\"\n"
		for i := range 2 {
			l.start(i)
		}
		l.synced(0, 1)
	})
	t.Logf("updates a second: syncd %.2f of the kernel's; processor time an update, both directors: kernel %v, syncd %v, %.1f of the kernel's",
		syncd.perSecond()/threads.perSecond(), threads.cost(&alone), syncd.cost(&alone), float64(syncd.cost(&alone))/float64(threads.cost(&alone)))
}

// A rate is what became of rateFlows.
type rate struct {
	came int           // to the other director's kernel
	took time.Duration // until it had them
	busy time.Duration // of all processors
}

func (r *rate) perSecond() float64 { return float64(r.came) / r.took.Seconds() }

// cost is the processor time for each update that came, beyond that of alone.
func (r *rate) cost(alone *rate) time.Duration {
	return (r.busy - alone.busy) / time.Duration(max(1, r.came))
}

func measureRate(t *testing.T, way string, synchronise func(*realLAN)) (r rate) {
	t.Run(way, func(t *testing.T) {
		l := newRealLAN(t)
		for i := range 2 {
			l.run(i, "sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
			l.run(i, "ipvsadm", "-A", "-u", testVIP+":53", "-s", "rr")
			l.run(i, "ipvsadm", "-a", "-u", testVIP+":53", "-r", "10.97.0.4:53", "-g")
		}
		l.via(0)
		synchronise(l)
		l.sendFlows(1) // what is slow the first time, ARP and the like
		time.Sleep(2 * time.Second)
		at, start, have := busyTime(t), time.Now(), l.flowsAt(1)
		l.sendFlows(rateFlows)
		sent, last := time.Since(start), time.Now()
		for r.took = sent; r.came < rateFlows && time.Since(last) < 4*time.Second; time.Sleep(20 * time.Millisecond) {
			if now := l.flowsAt(1) - have; now > r.came {
				r.came, last = now, time.Now()
				r.took = time.Since(start)
			}
			if l.flowsAt(0) < rateFlows {
				t.Fatalf("only %d flows were made", l.flowsAt(0))
			}
			if way == "no synchronisation" {
				break
			}
		}
		r.busy = busyTime(t) - at
		t.Logf("%d flows sent in %v; %d came within %v, %.0f/s; busy %v", rateFlows, sent, r.came, r.took, r.perSecond(), r.busy)
		for i := range 2 {
			if l.procs[i] != nil {
				t.Logf("d%d: %+v", i+1, l.status(i).Kernel)
				l.stop(i)
			}
		}
	})
	return r
}

// sendFlows sends n datagrams from n addresses and ports of the client's side.
// The source is a fresh one each time the program runs.
func (l *realLAN) sendFlows(n int) {
	l.t.Helper()
	must(l.t, testnet.Within(l.Nodes[nodeClient], func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := netip.MustParseAddr(testVIP).As4()
		b := make([]byte, 20+8+4)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], []byte{10, 97, 0, 3})
		copy(b[16:], to[:])
		binary.BigEndian.PutUint16(b[22:], 53)
		binary.BigEndian.PutUint16(b[24:], 12)
		for i := range n {
			binary.BigEndian.PutUint16(b[20:], uint16(1024+i+n%7)) // another first one for the warm-up
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
				return fmt.Errorf("flow %d: %w", i, err)
			}
		}
		return nil
	}))
}

// flowsAt is how many UDP connections node i's kernel has.
func (l *realLAN) flowsAt(i int) (n int) {
	l.t.Helper()
	must(l.t, testnet.Within(l.Nodes[i], func() error {
		c, err := ipvs.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		services, err := c.Services()
		if err != nil {
			return err
		}
		for _, s := range services {
			if s.Protocol != unix.IPPROTO_UDP {
				continue
			}
			dests, err := c.Dests(s)
			if err != nil {
				return err
			}
			for _, d := range dests {
				n += int(d.Active + d.Inactive)
			}
		}
		return nil
	}))
	return n
}

// busyTime is for how long the machine's processors were not idle (proc(5)).
func busyTime(t *testing.T) time.Duration {
	text, err := os.ReadFile("/proc/stat")
	must(t, err)
	line, _, _ := bytes.Cut(text, []byte("\n"))
	ticks := 0
	for i, f := range bytes.Fields(line) {
		if n, err := strconv.Atoi(string(f)); err == nil && i != 4 && i != 5 && i < 9 {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
