package legacy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"saru/conntable"
	"saru/internal/task"
	"saru/syncproto/kernelsync"
)

// DefaultGroup is where the kernel's sync threads meet unless told otherwise
// (include/net/ip_vs.h, IP_VS_SYNC_GROUP and IP_VS_SYNC_PORT).
var DefaultGroup = netip.MustParseAddrPort("224.0.0.81:8848")

// ExampleGroup6 is an IPv6 group; the kernel has no default of that family.
var ExampleGroup6 = netip.MustParseAddrPort("[ff02::81]:8848")

// MaxPorts is how many threads the kernel has at most
// (net/netfilter/ipvs/ip_vs_ctl.c, IPVS_SYNC_PORTS_MAX).
const MaxPorts = 64

const (
	// MaxHeard is how many records a second are handed on at most.
	MaxHeard = 50_000

	receiveBatch = 16
	sendBatch    = 16
	maxMessage   = 1<<16 - 1

	// lookEvery is how soon a vanished interface is noticed, and its return.
	lookEvery = time.Second

	// What marks a record as a syncd's, in version 1 and in version 0, whose
	// flags have 16 bits.
	mark1 uint32 = 1 << 31
	mark0 uint32 = 1 << 15
)

// Config says with whom a Link speaks.
type Config struct {
	Interface string         // of the group
	Group     netip.AddrPort // multicast, IPv4 or IPv6
	Ports     int            // how many are heard, from the group's on; the kernel's threads have one each
	SyncID    uint8          // sent; 0 hears all, as the kernel does
	Version   int            // of the protocol that is sent, 0 or 1; both are heard
	Log       *slog.Logger

	// Deliver takes the records of legacy directors, one at a time, while Run
	// runs. The Connection and what it points to are valid during the call
	// only. Timeout is 0 if it was not told.
	Deliver func(*conntable.Connection)
}

// Stats are a Link's counters.
type Stats struct {
	Decoded kernelsync.Counts // what came
	Heard   uint64            // records handed on
	Syncd   uint64            // records of other syncds
	Flood   uint64            // records above MaxHeard
	Told    uint64            // records sent
	Sent    uint64            // datagrams
	Untold  uint64            // records that the protocol cannot say
	Failed  uint64            // datagrams that the system refused to send
	Down    string            // why nothing passes, if so
}

// A Link is one syncd's place among legacy directors. It is a task. Send may
// be called from any goroutine.
type Link struct {
	cfg Config
	up  chan struct{}

	// Of what receives, one datagram at a time.
	dec         kernelsync.Decoder
	second      int64 // of the clock, in which n records were heard
	n           int
	heard       uint64
	syncd       uint64
	flood       uint64
	statsMu     sync.Mutex
	stats       Stats // the counters of the lines above
	down        atomic.Pointer[string]
	told, sent  atomic.Uint64
	untold, bad atomic.Uint64

	mu     sync.Mutex
	s      *sockets // nil while the interface is away
	conns  []conntable.Connection
	msgs   []ipv4.Message
	filled int
}

// Open joins the group. An interface that cannot do that is bad input.
func Open(cfg Config) (*Link, error) {
	s, err := openSockets(cfg.Interface, cfg.Group, cfg.Ports)
	if err != nil {
		return nil, err
	}
	return newLink(cfg, s), nil
}

func newLink(cfg Config, s *sockets) *Link {
	l := &Link{
		cfg: cfg, up: make(chan struct{}), s: s, dec: kernelsync.Decoder{SyncID: cfg.SyncID},
		conns: make([]conntable.Connection, 0, kernelsync.MaxRecords), msgs: make([]ipv4.Message, sendBatch),
	}
	for i := range l.msgs {
		l.msgs[i].Buffers = make([][]byte, 1)
	}
	return l
}

// Close leaves the group. Run must have returned.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		return nil
	}
	err := l.s.close()
	l.s = nil
	return err
}

// Run hears the group until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	close(l.up)
	for ctx.Err() == nil {
		l.mu.Lock()
		s := l.s
		l.mu.Unlock()
		err := l.hear(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		l.setDown(err)
		if !l.reopen(ctx) {
			return nil
		}
		l.setDown(nil)
	}
	return nil
}

// Ready is closed when the group is heard.
func (l *Link) Ready() <-chan struct{} { return l.up }

func (l *Link) String() string { return "legacy sync" }

func (l *Link) setDown(err error) {
	if err == nil {
		l.down.Store(nil)
		l.cfg.Log.Info("legacy sync is back", "interface", l.cfg.Interface)
		return
	}
	why := err.Error()
	l.down.Store(&why)
	l.cfg.Log.Warn("legacy sync is cut", "interface", l.cfg.Interface, "err", err)
}

// reopen tries to join again until it succeeds or ctx ends.
func (l *Link) reopen(ctx context.Context) bool {
	l.mu.Lock()
	l.s.close()
	l.s = nil
	l.mu.Unlock()
	for task.Pause(ctx, lookEvery) {
		if s, err := openSockets(l.cfg.Interface, l.cfg.Group, l.cfg.Ports); err == nil {
			l.mu.Lock()
			l.s = s
			l.mu.Unlock()
			return true
		}
	}
	return false
}

// hear handles datagrams until ctx ends, or the interface is another.
func (l *Link) hear(ctx context.Context, s *sockets) error {
	var gone atomic.Pointer[error]
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		if err := s.watch(ctx); err != nil {
			gone.Store(&err)
		}
		s.interrupt()
	})
	err := s.receive(func(msg []byte) { l.take(msg, time.Now().Unix()) })
	if why := gone.Load(); why != nil {
		return *why
	}
	return err
}

// take decodes one datagram that came in the given second.
func (l *Link) take(msg []byte, second int64) {
	if second != l.second {
		l.second, l.n = second, 0
	}
	mark := mark1
	if len(msg) > 0 && msg[0] != 0 {
		mark = mark0
	}
	// What is malformed is counted by its reason.
	_ = l.dec.Decode(msg, func(c *conntable.Connection) {
		switch {
		case c.Flags&mark != 0:
			l.syncd++
		case l.n >= MaxHeard:
			l.flood++
		default:
			l.n++
			l.heard++
			l.cfg.Deliver(c)
		}
	})
	l.statsMu.Lock()
	l.stats = Stats{Decoded: l.dec.Counts, Heard: l.heard, Syncd: l.syncd, Flood: l.flood}
	l.statsMu.Unlock()
}

// Stats returns the counters.
func (l *Link) Stats() Stats {
	l.statsMu.Lock()
	st := l.stats
	l.statsMu.Unlock()
	st.Told, st.Sent, st.Untold, st.Failed = l.told.Load(), l.sent.Load(), l.untold.Load(), l.bad.Load()
	if why := l.down.Load(); why != nil {
		st.Down = *why
	}
	return st
}

// errDown says that the interface is away.
var errDown = errors.New("legacy: the interface is away")

// Send tells the group of conns, whose Timeout is what remains of a
// connection's life and a template's whole timeout. It returns how many went
// out; what cannot be said is counted and left out. conns is changed.
func (l *Link) Send(conns []conntable.Connection) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		return 0, errDown
	}
	n := 0
	for len(conns) > 0 {
		took, told := l.encode(conns)
		n += told
		conns = conns[took:]
		if l.filled == len(l.msgs) || len(conns) == 0 {
			if err := l.flush(); err != nil {
				return n, err
			}
		}
	}
	l.told.Add(uint64(n))
	return n, nil
}

// encode makes one message of the first of conns. It returns how many it
// used up, and how many are in the message.
func (l *Link) encode(conns []conntable.Connection) (took, told int) {
	encode, mark := kernelsync.AppendMessage, mark1
	if l.cfg.Version == 0 {
		encode, mark = kernelsync.AppendMessage0, mark0
	}
	few := conns[:min(len(conns), kernelsync.MaxRecords)]
	for i := range few {
		few[i].Flags |= mark
	}
	buf := &l.msgs[l.filled].Buffers[0]
	var err error
	if *buf, told, err = encode((*buf)[:0], l.cfg.SyncID, l.s.room, few); err != nil {
		l.untold.Add(1)
		return 1, 0
	}
	l.msgs[l.filled].Addr = l.s.group
	l.filled++
	return told, told
}

func (l *Link) flush() error {
	msgs := l.msgs[:l.filled]
	l.filled = 0
	for len(msgs) > 0 {
		n, err := l.s.out.WriteBatch(msgs, 0)
		if err != nil {
			l.bad.Add(uint64(len(msgs)))
			return fmt.Errorf("legacy: send to %v: %w", net.UDPAddrFromAddrPort(l.cfg.Group), err)
		}
		l.sent.Add(uint64(n))
		msgs = msgs[n:]
	}
	return nil
}
