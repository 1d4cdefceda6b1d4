package syncd

import (
	"flag"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/testnet"
	"saru/ipvs/usersync"
)

var latencyEvents = flag.Int("latency.events", 300, "how many events TestEventToPeersKernel measures")

// TestEventToPeersKernel measures the way of a module's event to the peer's
// injection, for the log: two engines on a LAN of namespaces, their datagrams
// sealed, so all but the kernels' own parts. quiet is one event now and then,
// busy thousands a second. Only that they come is asserted.
func TestEventToPeersKernel(t *testing.T) {
	for _, c := range []struct {
		name   string
		every  time.Duration
		others int // beside each
	}{{"quiet", 10 * time.Millisecond, 0}, {"busy", time.Millisecond, 5}} {
		t.Run(c.name, func(t *testing.T) { measureEvents(t, *latencyEvents, c.every, c.others) })
	}
}

func measureEvents(t *testing.T, n int, every time.Duration, others int) {
	l := newLAN(t, 2)
	a, p := l.start(0), l.start(1)
	testnet.Await(t, "synced", func() bool { return a.Synced() && p.Synced() })
	at := map[conntable.Key]time.Time{}
	p.kernel.mu.Lock()
	p.kernel.onInject = func(c *conntable.Connection) { at[c.Key] = time.Now() }
	p.kernel.mu.Unlock()

	sent, next, used := make([]time.Time, n), n, processorTime(t)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		for range others {
			a.hear(usersync.KindNew, tcp(next, synRecv, time.Minute))
			next++
		}
		sent[i] = time.Now()
		a.hear(usersync.KindNew, tcp(i, synRecv, time.Minute))
	}
	testnet.Await(t, "all told", func() bool { return p.kernel.injections() >= next })
	used = processorTime(t) - used

	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	took := make([]time.Duration, n)
	for i := range took {
		c := tcp(i, 0, 0)
		took[i] = at[c.Key].Sub(sent[i])
	}
	slices.Sort(took)
	t.Logf("%d connections: p50 %v, p99 %v, max %v; %v of processor time each, both nodes and the test",
		next, took[n/2], took[n*99/100], took[n-1], used/time.Duration(next))
}

func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
