package ipvs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"saru/conntable"
)

// measured skips measurements, which say nothing about right or wrong, unless
// they are asked for.
func measured(t *testing.T) {
	if os.Getenv("SARU_MEASURE") == "" {
		t.Skip("a measurement; set SARU_MEASURE=1, on an otherwise idle machine")
	}
}

// TestMeasureCapture: for how long a new connection waits in the kernel, quiet
// and busy, and what a record costs, by size of the kernel's buffers and rate
// of the heartbeat.
func TestMeasureCapture(t *testing.T) {
	measured(t)
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if err := ipvsadm("-A", "-u", vip+":53", "-s", "rr"); err != nil {
		t.Fatal(err)
	}
	if err := ipvsadm("-a", "-u", vip+":53", "-r", vip+":53", "-g"); err != nil {
		t.Fatal(err)
	}
	acceptAll(t)
	for _, c := range []struct {
		maxLen uint16
		rate   int
	}{{44, 20}, {44, 50}, {1472, 50}} {
		t.Run(fmt.Sprintf("%d bytes, %d beats", c.maxLen, c.rate), func(t *testing.T) { measureCapture(t, c.maxLen, c.rate) })
	}
}

func acceptAll(t *testing.T) {
	ln := listening(t)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	pc, err := net.ListenPacket("udp", vip+":53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
}

func measureCapture(t *testing.T, maxLen uint16, rate int) {
	var mu sync.Mutex
	came := map[netip.AddrPort]time.Time{}
	records := 0
	cfg := testConfig(t)
	cfg.MaxLen, cfg.BeatRate = maxLen, rate
	cfg.OnRecord = func(c *conntable.Connection) {
		mu.Lock()
		defer mu.Unlock()
		records++
		if _, ok := came[c.Client]; !ok {
			came[c.Client] = time.Now()
		}
	}
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	count := func() int { mu.Lock(); defer mu.Unlock(); return records }
	delays := func(n int) (p50, p99 time.Duration) {
		made := map[netip.AddrPort]time.Time{}
		for range n {
			time.Sleep(time.Duration(30+rand.IntN(60)) * time.Millisecond)
			c, err := net.Dial("tcp", vip+":80")
			if err != nil {
				t.Fatal(err)
			}
			made[addrOf(c.LocalAddr())] = time.Now()
			defer c.Close()
		}
		time.Sleep(3 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		var all []time.Duration
		for client, at := range made {
			all = append(all, came[client].Sub(at))
		}
		slices.Sort(all)
		return all[len(all)/2], all[len(all)*99/100]
	}
	idle := busyTicks(t)
	time.Sleep(2 * time.Second)
	idle = busyTicks(t) - idle
	quiet50, quiet99 := delays(100)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(4 * time.Millisecond):
				if c, err := net.Dial("tcp", vip+":80"); err == nil {
					c.Close()
				}
			}
		}
	})
	before, start := count(), time.Now()
	busy50, busy99 := delays(100)
	load := float64(count()-before) / time.Since(start).Seconds()
	close(stop)
	wg.Wait()
	cost := flood(t, count)
	t.Logf("%d bytes, %d beats/s: quiet p50 %v p99 %v; at %.0f records/s p50 %v p99 %v; %s; idle %d ticks in 2 s; drops %d", maxLen, rate,
		quiet50.Round(100*time.Microsecond), quiet99.Round(100*time.Microsecond), load,
		busy50.Round(100*time.Microsecond), busy99.Round(100*time.Microsecond), cost, idle, tap.Stats().CaptureDrops)
}

// flood makes records as fast as it can.
func flood(t *testing.T, count func() int) string {
	const n = 1500
	ticks, before, start := busyTicks(t), count(), time.Now()
	for range n {
		c, err := net.Dial("udp", vip+":53")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	for wait := time.Now(); count()-before < n && time.Since(wait) < 5*time.Second; {
		time.Sleep(5 * time.Millisecond)
	}
	got := count() - before
	return fmt.Sprintf("%d of %d records in %v, %.2f ticks of CPU for 1,000", got, n, time.Since(start).Round(time.Millisecond), float64(busyTicks(t)-ticks)*1000/float64(got))
}

// busyTicks is the time that the machine's CPUs were not idle (proc(5)).
func busyTicks(t *testing.T) int {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	sum := 0
	for i, f := range bytes.Fields(line) {
		if n, err := strconv.Atoi(string(f)); err == nil && i != 4 && i != 5 && i < 9 {
			sum += n
		}
	}
	return sum
}
