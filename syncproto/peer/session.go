package peer

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/seal"
)

// Times of the protocol.
const (
	heartbeatEvery = 250 * time.Millisecond
	heartbeatSoon  = 20 * time.Millisecond // after records, and between answers
	missingWait    = 3 * time.Millisecond  // datagrams may overtake each other
	missingAgain   = 40 * time.Millisecond
	missingMax     = time.Second
	silentAfter    = 1500 * time.Millisecond
	forgetAfter    = 10 * time.Minute
	awaitFor       = 30 * time.Second // a joiner waits for a silent peer that holds the cluster's state
	awaitMost      = 5 * time.Minute  // and so long in all for one that is started anew
	oldBootFor     = 3 * time.Second  // an older life is not believed while a newer one spoke so lately
	pullAgain      = 200 * time.Millisecond
	pullAgainMax   = 5 * time.Second
	pullRest       = time.Second // after one pull that followed another, and twice that after the next
	pullRestMax    = 30 * time.Second
	pullRestFor    = 2 * time.Minute // without a pull, and all is forgotten
	frameTimeout   = 10 * time.Second
)

// Limits of the implementation.
const (
	maxPeers       = 64
	maxPulls       = 4    // at once, as puller and as source each
	pullPatience   = 5    // failures after which a joiner goes on without a peer
	resendsPerTick = 1024 // datagrams sent again in resendTick
	resendTick     = 50 * time.Millisecond
	sendBatch      = 32
	bulkChunk      = 2048 // records between two marks of a stream

	// usualMTU is what datagrams are made for until all peers say that they get
	// larger ones.
	usualMTU = 1500
	// DefaultDatagram is what it leaves over IPv4 for a datagram's UDP payload,
	// in bytes; over IPv6 that is 20 less.
	DefaultDatagram = usualMTU - ipUDPHeaders

	purposeDatagram = "syncd datagram"
	purposeBulk     = "syncd bulk"
)

// DefaultStartPeriod is how long a node listens for peers before it takes
// itself for alone.
const DefaultStartPeriod = 2 * time.Second

// A Transport carries datagrams between nodes and connects their streams. Its
// methods are safe for concurrent use and keep no slice they are given.
type Transport interface {
	// Broadcast sends to the group, or to each peer that is known.
	Broadcast(datagrams [][]byte) error
	// Group reports whether that is a group, whose datagrams may not reach
	// peers that others reach.
	Group() bool
	SendTo(datagrams [][]byte, to netip.AddrPort) error
	// Receive calls deliver with each datagram until ctx ends, then returns
	// nil. group says that it was sent to the group.
	Receive(ctx context.Context, deliver func(datagram []byte, from netip.AddrPort, group bool)) error
	Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Listener accepts peers' streams on Port.
	Listener() net.Listener
	Port() uint16
	// Headers is what IP and UDP add to a datagram, in bytes.
	Headers() int
}

// Config says what a Session needs. All fields but StartPeriod and Datagram
// are mandatory.
type Config struct {
	Node      string // 1 to MaxName printable ASCII bytes
	Keys      *seal.Keyring
	Clock     *conntable.Clock
	Transport Transport
	Log       *slog.Logger

	StartPeriod time.Duration // 0: DefaultStartPeriod
	Datagram    int           // largest UDP payload that the own link takes, in bytes; 0: what an MTU of 1,500 leaves

	// Deliver is called with records of a peer, in the order in which they came,
	// by several goroutines. recs is its own until it returns; their Seq and
	// PEData may be kept.
	Deliver func(recs []conntable.Record)
	// Received, unless nil, is called with each receipt that a peer gives: it is
	// done with all datagrams up to sequence (see Ask).
	Received func(sequence uint64)
	// Ranked and Walk tell all that this node holds (conntable.Table).
	Ranked func() conntable.Cursor
	Walk   func(c *conntable.Cursor, in *conntable.Slices, recs []conntable.Record) int
	// Len is how many connections that are.
	Len func() int
}

// A Session is one node's part in the protocol. It is a task.
type Session struct {
	cfg         Config
	log         *slog.Logger
	self        conntable.NodeID
	incarnation uint64
	sealer      *seal.Sealer
	opener      *seal.Opener
	keys        atomic.Pointer[seal.Keyring] // for streams
	drops       drops
	synced      atomic.Bool
	version     atomic.Uint32 // that is spoken
	streams     atomic.Int32  // that are served
	size        atomic.Int64  // of datagrams of records, at most
	usual       int           // that until the peers tell

	kick   chan struct{} // wakes pace
	asks   chan Receipt
	joined chan struct{}
	up     chan struct{}
	group  *errgroup.Group

	sendMu sync.Mutex // Send's own
	batch  batch
	out    [][]byte
	outN   int

	ringMu    sync.Mutex // after mu, where both are held
	ring      ring
	recordsAt time.Time // when records were last sent
	room      int       // bytes of a datagram that the system takes, of late
	roomAt    time.Time
	sent      uint64 // records

	mu        sync.Mutex
	peers     map[conntable.NodeID]*peerState
	answer    bool // somebody asked for a heartbeat
	ask       bool // we want the peers' heartbeats now
	catchUps  map[*catchUp]struct{}
	asked     uint64 // the newest question
	beatAt    time.Time
	started   time.Time
	pulls     int
	source    *peerState    // that a joiner pulls from
	compared  chan struct{} // closed and made anew when digests were compared
	changed   chan struct{} // closed and made anew when a pull ends
	resent    int
	resentAt  time.Time
	digests   digests      // this node's own
	ownSlices sliceHistory // what the newest of them are the sums of
	clashAt   time.Time    // when another node spoke under our name

	services   serviceList // this node's own
	servicesAt time.Time   // when it was last told
	clashAddr  netip.AddrPort

	rateAt   time.Time // beat's own
	rateSent uint64
	lastRate uint32
	probeAt  time.Time
	probes   int

	plain       []byte // receive's own
	decoder     decoder
	deliverLive func(*conntable.Record)
	live        deliveries // for it
	now, came   uint64
	missing     missing
	heartbeat   heartbeat
}

// NewSession returns a Session for cfg.
func NewSession(cfg Config) *Session {
	if cfg.StartPeriod == 0 {
		cfg.StartPeriod = DefaultStartPeriod
	}
	usual := usualMTU - cfg.Transport.Headers()
	if cfg.Datagram == 0 {
		cfg.Datagram = usual
	}
	s := &Session{
		cfg: cfg, log: cfg.Log, self: cfg.Clock.Node(), incarnation: cfg.Clock.Now(),
		sealer: seal.NewSealer(cfg.Keys, purposeDatagram), opener: seal.NewOpener(cfg.Keys, purposeDatagram),
		kick: make(chan struct{}, 1), asks: make(chan Receipt, maxPeers), joined: make(chan struct{}), up: make(chan struct{}), changed: make(chan struct{}), compared: make(chan struct{}),
		peers: map[conntable.NodeID]*peerState{}, catchUps: map[*catchUp]struct{}{}, plain: make([]byte, 0, 64<<10),
		out: make([][]byte, sendBatch),
	}
	s.deliverLive = s.deliverOne
	s.live.deliver = cfg.Deliver
	s.keys.Store(cfg.Keys)
	s.version.Store(protocolVersion)
	s.usual = min(cfg.Datagram, usual)
	s.size.Store(int64(s.usual))
	for i := range s.out {
		s.out[i] = make([]byte, 0, cfg.Datagram)
	}
	return s
}

// Run takes part until ctx ends.
func (s *Session) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s.group = g
	s.started = time.Now()
	g.Go(func() error { return s.cfg.Transport.Receive(ctx, s.receive) })
	g.Go(func() error { return s.pace(ctx) })
	g.Go(func() error { return s.serve(ctx) })
	close(s.up)
	return g.Wait()
}

// Ready is closed when the session hears and answers.
func (s *Session) Ready() <-chan struct{} { return s.up }

func (s *Session) String() string { return "peer session" }

// Joined is closed when all that the reachable peers held at the moment of
// joining was delivered, or the start period passed without a peer.
func (s *Session) Joined() <-chan struct{} { return s.joined }

// SetSynced tells the peers whether this node holds the cluster's state.
func (s *Session) SetSynced(v bool) { s.synced.Store(v); s.wake() }

// SetKeys seals and opens with other keys from now on. Peers that have the first
// of them notice nothing.
func (s *Session) SetKeys(kr *seal.Keyring) {
	s.keys.Store(kr)
	s.opener.SetKeys(kr)
	s.sealer.SetKeys(kr)
}

// Drops calls yield with each reason and how often it dropped something.
func (s *Session) Drops(yield func(why string, n uint64)) {
	for i := range s.drops {
		yield(Drop(i).String(), s.drops[i].Load())
	}
}

// Sent returns how many datagrams of records were sent, and how many records
// were in them.
func (s *Session) Sent() (datagrams, records uint64) {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	return s.ring.highest, s.sent
}

func (s *Session) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Send tells all peers of recs, whose versions are this node's own. It does
// not fail: what the system refuses to send is repaired like any loss.
func (s *Session) Send(recs []conntable.Record) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	version := uint8(s.version.Load())
	clock := s.batch.load(recs, version, s.self, &s.drops)
	for s.sendOne(version, clock) {
	}
	s.flushOut()
	s.wake()
}

// sendOne makes one datagram of what the batch has, and reports whether there
// was anything left.
func (s *Session) sendOne(version uint8, clock uint64) bool {
	if s.outN == len(s.out) {
		s.flushOut() // not with ringMu held: that comes after mu
	}
	now := time.Now()
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	head := recordsHead{version: version, sequence: s.ring.highest + 1, clock: clock}
	message, n := s.batch.next(head.append(s.ring.slot(), s.self), int(s.size.Load())-seal.Overhead)
	if n == 0 {
		return false
	}
	s.ring.store(message, now)
	s.recordsAt = now
	s.sent += uint64(n)
	s.out[s.outN], _ = s.sealer.Seal(s.out[s.outN][:0], message)
	s.outN++
	return true
}

func (s *Session) flushOut() {
	if s.outN == 0 {
		return
	}
	s.broadcast(s.out[:s.outN], false)
	s.outN = 0
}
