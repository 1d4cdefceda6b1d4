package syncd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"saru/conntable"
	"saru/syncproto/kernelsync"
	"saru/syncproto/peer"
	"saru/syncproto/peer/peertest"
)

// Benchmarks of the way from the kernel's datagrams to sealed ones, and back,
// without a kernel and without a network. They count processor time: two cores
// that others use blur the time that passes.

const (
	benchConns   = 1 << 20 // different connections
	kernelBuffer = 4096    // bytes of a datagram of the kernel's sync thread
)

// A stillNet carries nothing. It hands what is broadcast to sent.
type stillNet struct {
	sent    func([][]byte)
	receive chan func([]byte, netip.AddrPort, bool)
	closed  chan struct{}
	once    sync.Once
}

func newStillNet(sent func([][]byte)) *stillNet {
	return &stillNet{sent: sent, receive: make(chan func([]byte, netip.AddrPort, bool), 1), closed: make(chan struct{})}
}

func (n *stillNet) Group() bool                           { return false }
func (n *stillNet) Broadcast(d [][]byte) error            { n.sent(d); return nil }
func (n *stillNet) SendTo([][]byte, netip.AddrPort) error { return nil }
func (n *stillNet) Listener() net.Listener                { return n }
func (n *stillNet) Port() uint16                          { return 8849 }
func (n *stillNet) Headers() int                          { return 28 }
func (n *stillNet) Accept() (net.Conn, error)             { <-n.closed; return nil, net.ErrClosed }

func (n *stillNet) Close() error   { n.once.Do(func() { close(n.closed) }); return nil }
func (n *stillNet) Addr() net.Addr { return &net.TCPAddr{} }
func (n *stillNet) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, net.ErrClosed
}

func (n *stillNet) Receive(ctx context.Context, deliver func([]byte, netip.AddrPort, bool)) error {
	n.receive <- deliver
	<-ctx.Done()
	return nil
}

// An encodingKernel takes what is injected as the tap does: it makes the
// kernel's datagrams of it.
type encodingKernel struct {
	fakeKernel
	buf []byte
}

func (k *encodingKernel) Inject(conns []conntable.Connection) error {
	for len(conns) > 0 {
		b, n, err := kernelsync.AppendMessage(k.buf[:0], 1, 9000, conns)
		if err != nil {
			return err
		}
		k.buf, conns = b, conns[n:]
	}
	return nil
}

// benchConn is connection i of ten services with twenty real servers each.
func benchConn(i int) conntable.Connection {
	n := uint32(i) * 2654435761 // all different, in no order
	service := byte(i % 10)
	return conntable.Connection{
		Key: conntable.Key{
			Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{100 + byte(n>>30), byte(n >> 22), byte(n >> 14), byte(n >> 6)}), 1024+uint16(n&63)),
			Virtual:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, 100 + service}), 443),
			Protocol: 6,
		},
		Dest:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, service, 10 + byte(i/10%20)}), 443),
		State: established, Flags: conntable.FlagFwdGate, Timeout: 900 * time.Second,
	}
}

// kernelDatagrams are those in which a kernel tells of n connections.
func kernelDatagrams(b *testing.B, n int, state uint16) [][]byte {
	var out [][]byte
	conns := make([]conntable.Connection, 0, 255)
	for i := range n {
		c := benchConn(i)
		c.State = state
		conns = append(conns, c)
		for len(conns) == cap(conns) || i == n-1 && len(conns) > 0 {
			d, m, err := kernelsync.AppendMessage(nil, 1, kernelBuffer, conns)
			if err != nil {
				b.Fatal(err)
			}
			out = append(out, d)
			conns = conns[:copy(conns, conns[m:])]
		}
	}
	return out
}

func benchEngine(node string, limit int, n *stillNet) *Engine {
	return New(Config{Node: node, Keys: testKeys, Transport: n, Log: slog.New(slog.DiscardHandler), Limit: limit})
}

// flushNow is what flush does when enough waits.
func (e *Engine) flushNow(refs []conntable.Ref, recs []conntable.Record) ([]conntable.Ref, []conntable.Record) {
	refs = e.toPeers.swap(refs)
	e.clock.Turn()
	recs = e.sendNews(refs, recs)
	e.toPeers.finish(len(refs))
	return refs, recs
}

// perCore reports n updates done in the processor time used since before.
func perCore(b *testing.B, n int, used time.Duration) {
	b.ReportMetric(float64(n)/used.Seconds(), "updates/s/core")
	b.ReportMetric(float64(used.Nanoseconds())/float64(n), "cpu-ns/update")
}

func cpuUsed(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkKernelToPeers goes from the kernel's datagrams to sealed ones: what
// the owner of connections does.
func BenchmarkKernelToPeers(b *testing.B) {
	// Another state each time, else it would not be told to the peers.
	sets := [2][][]byte{kernelDatagrams(b, benchConns, established), kernelDatagrams(b, benchConns, finWait)}
	for _, c := range []struct {
		name   string
		update bool
	}{{"new", false}, {"update", true}} {
		b.Run(c.name, func(b *testing.B) {
			bytes := 0
			count := func(d [][]byte) {
				for i := range d {
					bytes += len(d[i])
				}
			}
			e := benchEngine("d1", 2*benchConns, newStillNet(count))
			var dec kernelsync.Decoder
			refs, recs := make([]conntable.Ref, 0, flushChunk+255), make([]conntable.Record, 0, flushChunk)
			n := 0
			var conns []conntable.Connection
			take := func(d []byte) {
				conns = conns[:0]
				if err := dec.Decode(d, func(c *conntable.Connection) { conns = append(conns, *c) }); err != nil {
					b.Fatal(err)
				}
				n += len(conns)
				e.CapturedAll(conns)
				if e.toPeers.size() >= flushChunk {
					refs, recs = e.flushNow(refs, recs)
				}
			}
			round := 0
			if c.update {
				for _, d := range sets[0] {
					take(d)
				}
				round++
			}
			n, bytes = 0, 0
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuUsed(b)
			var made time.Duration
			for i := 0; n < b.N; i++ {
				if i == len(sets[round%2]) {
					i = 0
					round++
					if !c.update { // a new table, not counted
						b.StopTimer()
						at := cpuUsed(b)
						e = benchEngine("d1", 2*benchConns, newStillNet(count))
						made += cpuUsed(b) - at
						b.StartTimer()
					}
				}
				take(sets[round%2][i])
			}
			perCore(b, n, cpuUsed(b)-before-made)
			b.ReportMetric(float64(bytes)/float64(n), "wire-B/update")
		})
	}
}

// BenchmarkPeersToKernel goes from sealed datagrams to the mirror and to the
// kernel's datagrams: what every other director does.
func BenchmarkPeersToKernel(b *testing.B) {
	for _, c := range []struct {
		name   string
		update bool
	}{{"new", false}, {"update", true}} {
		b.Run(c.name, func(b *testing.B) {
			var datagrams [][]byte
			sender := benchEngine("d2", 2*benchConns, newStillNet(func(d [][]byte) {
				for i := range d {
					datagrams = append(datagrams, slices.Clone(d[i]))
				}
			}))
			refs, recs := make([]conntable.Ref, 0, flushChunk), make([]conntable.Record, 0, flushChunk)
			round := 0
			tell := func(n int) {
				round++
				for i := range n {
					c := benchConn(i % benchConns)
					if c.State = established; round%2 == 0 {
						c.State = finWait
					}
					sender.Captured(&c)
					if sender.toPeers.size() >= flushChunk || i == n-1 {
						refs, recs = sender.flushNow(refs, recs)
					}
				}
			}
			s := startStill(b)
			from := netip.MustParseAddrPort("10.0.0.2:8849")
			if c.update {
				tell(benchConns)
				for _, d := range datagrams {
					s.deliver(d, from, true)
				}
				s.inject(b.Context())
			}
			b.ReportAllocs()
			b.ResetTimer()
			var used time.Duration
			for done := 0; done < b.N; {
				b.StopTimer()
				n := min(b.N-done, benchConns)
				if done > 0 && !c.update {
					s.stop()
					s = startStill(b)
				}
				datagrams = datagrams[:0]
				tell(n)
				b.StartTimer()
				at := cpuUsed(b)
				for _, d := range datagrams {
					s.deliver(d, from, true)
					if s.toKernel.size() >= flushChunk {
						s.inject(b.Context())
					}
				}
				s.inject(b.Context())
				used += cpuUsed(b) - at
				done += n
			}
			b.StopTimer()
			perCore(b, b.N, used)
			if got := s.injected.Load(); got < uint64(b.N)%benchConns {
				b.Fatalf("%d were injected; outcomes %v", got, &s.outcomes)
			}
			s.stop()
		})
	}
}

// A stillEngine is an engine of which only the session runs. It hears what is
// given to deliver.
type stillEngine struct {
	*Engine
	deliver func([]byte, netip.AddrPort, bool)
	stop    func()
	refs    []conntable.Ref
	conns   []conntable.Connection
}

func startStill(b *testing.B) *stillEngine {
	n := newStillNet(func([][]byte) {})
	s := &stillEngine{Engine: benchEngine("d1", 2*benchConns, n), conns: make([]conntable.Connection, 0, injectChunk)}
	k := &encodingKernel{}
	k.targets = map[Target]struct{}{}
	for i := range 200 {
		c := benchConn(i)
		k.targets[Target{Virtual: c.Virtual, Protocol: c.Protocol, Dest: c.Dest}] = struct{}{}
	}
	s.SetKernel(k)
	s.watchServices()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.session.Run(ctx) }()
	s.deliver = <-n.receive
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	return s
}

// inject is what the task of that name does when something waits.
func (s *stillEngine) inject(ctx context.Context) {
	s.refs = s.toKernel.swap(s.refs)
	for rest := s.refs; len(rest) > 0; {
		n := min(len(rest), injectChunk)
		s.conns = s.injectSome(ctx, rest[:n], s.conns[:0])
		s.toKernel.finish(n)
		rest = rest[n:]
	}
}

var _ peer.Transport = (*stillNet)(nil)

// A wire has its datagrams in memory and its streams on the loopback's TCP.
type wire struct {
	*peertest.Node
	ln net.Listener
	to net.Listener // the other node's
}

func (w *wire) Listener() net.Listener { return w.ln }

func (w *wire) Dial(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", w.to.Addr().String())
}

// BenchmarkPull pulls a million connections into an empty mirror, over
// loopback TCP, both ends in this process.
func BenchmarkPull(b *testing.B) {
	network := peertest.New(1)
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		return ln
	}
	near := &wire{Node: network.Node(1), ln: listen()}
	source := New(Config{Node: "d1", Keys: testKeys, Transport: near, Log: slog.New(slog.DiscardHandler), Limit: 2 * benchConns})
	for i := range benchConns {
		c := benchConn(i)
		source.Captured(&c)
	}
	run := func(s *peer.Session) func() {
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
	}
	stop := run(source.session)
	defer stop()
	source.session.SetSynced(true)
	var used, passed time.Duration
	for range b.N {
		b.StopTimer()
		table := conntable.New(2 * benchConns)
		var begun time.Time // by the first record: heartbeats come before
		var first sync.Once
		var one sync.Mutex // a pull and what is live deliver side by side
		var batch conntable.Batch
		end := &wire{Node: network.Node(2), ln: listen(), to: near.ln}
		near.to = end.ln
		var at time.Duration
		joiner := peer.NewSession(peer.Config{
			Node: "d2", Keys: testKeys, Clock: conntable.NewClock(conntable.NodeIDOf("d2")), Transport: end,
			Log: slog.New(slog.DiscardHandler), StartPeriod: time.Millisecond,
			Deliver: func(recs []conntable.Record) {
				first.Do(func() { begun, at = time.Now(), cpuUsed(b) })
				one.Lock()
				defer one.Unlock()
				table.ApplyAll(&batch, recs, 0)
			},
			Ranked: table.Ranked, Walk: table.Walk, Len: table.Len,
		})
		b.StartTimer()
		halt := run(joiner)
		<-joiner.Joined()
		passed += time.Since(begun)
		used += cpuUsed(b) - at
		if table.Len() != benchConns {
			b.Fatalf("%d of %d connections came", table.Len(), benchConns)
		}
		b.StopTimer()
		halt()
	}
	b.ReportMetric(passed.Seconds()/float64(b.N), "s/million")
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N*benchConns), "cpu-ns/connection")
}
