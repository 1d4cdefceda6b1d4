package membership

import (
	"time"

	"saru/partition"
)

const (
	// lateness is by how much a kernel timer may end after its time: 6
	// jiffies at HZ=250 (PROTOCOL: J).
	lateness = 24 * time.Millisecond
	// ringSize is how many sent heartbeats are remembered.
	ringSize = 64
	// maxPeers bounds the table of nodes ever heard.
	maxPeers = 64
	// maxExtra bounds the heartbeats sent at once between two ticks.
	maxExtra = 8
	// scratch is how many messages of a kind one event may ask to send.
	scratch = 16
)

type sentHB struct {
	n    uint64
	at   time.Duration
	ear  time.Duration // at, by the listening clock
	own  bool          // this node's own ledger voted for it
	open partition.Set
	want partition.Set
	acks []vote

	refused bool // somebody refused something
}

type vote struct {
	from    NodeID
	granted partition.Set
	refused partition.Set
}

// A Core is one node's side of the protocol. It does no I/O and is not safe
// for concurrent use. Times are monotonic, since any one origin.
//
//	          L_w of on-time ticks, gate
//	Joining ------------------------------> Ready <--> Draining --> Left
//	   ^                                      |            |
//	   |      all closed                      | lease lapsed, tick late
//	   +----------------- Fenced <------------+------------+
type Core struct {
	cfg     Config
	id      NodeID
	cluster uint32
	words   int
	now     time.Duration
	out     []Action
	spare   []Action
	stats   Stats

	state     State
	joinEar   time.Duration // when joining began, by the listening clock
	gateFull  bool
	gateCold  bool
	drain     bool
	linkDown  bool
	leaving   bool
	leaveAt   time.Duration
	farewells int
	hold      time.Duration // for how long it must have been on time to take part again
	readyAt   time.Duration // when it last became ready
	aside     int           // how many heartbeats more say that it steps aside
	spoke     time.Duration // when the first heartbeat was sent, or 0
	pingAt    time.Duration
	reach     uint8
	freeze    uint32
	namesake  namesake
	cloneAt   time.Duration // another machine was heard under our name
	strangeAt time.Duration // something else showed that it serves the share
	frameAt   time.Duration
	degrade   bool // as last told
	degraded  latch
	impaired  latch
	noFrames  bool

	// holder
	n          uint64
	sent       [ringSize]sentHB
	open       partition.Set // what the kernel may have open
	sure       partition.Set // what it had at the last read back
	rest       partition.Set // what its set rest holds, at the last read back
	unsure     bool          // the last read back failed
	applying   bool
	asked      partition.Set // of the apply under way
	askedRest  partition.Set
	closeReq   partition.Set // to close whatever the assignment says
	closeAll   bool
	minConfirm uint64
	confirmed  uint64
	confirmAt  time.Duration // when heartbeat confirmed was sent
	heldSince  time.Duration // when nothing was held
	cleared    [MaxBuckets]uint64
	releasedAt [MaxBuckets]time.Duration
	wake       time.Duration
	retryAt    time.Duration // when refused wants are claimed again before the next tick, or 0
	won        partition.Set // refusals of them are a healed split's, not a loss
	wonUntil   time.Duration
	conflictAt time.Duration

	// hand-over
	taking    partition.Set // wanted in rest before another gives them up
	lingering partition.Set // kept in rest after they were given up
	lingerAt  [MaxBuckets]time.Duration
	gave      time.Duration // when handshakes were last to be told, of what will go
	token     uint64

	// voter
	started time.Duration
	maxLw   time.Duration
	shape   uint64 // of the promises, for a witness
	ledger  [MaxBuckets]promise

	// who is here
	peers    []*peer // in the order of their ids
	drained  bool    // nothing waited unread when this event began
	lastTick time.Duration
	streak   time.Duration // since when all ticks were on time
	asleep   time.Duration // by how much the listening clock is behind
	extra    int

	// master
	assign   *Assignment
	parts    *Assignment // being gathered
	gathered partition.Set
	mine     partition.Set
	adopted  time.Duration // when assign was
	since    Epoch
	cands    []candidate

	// for people
	events, eventsSpare []Event
	shown               shown
	closeWhy            string // why buckets are being closed
	fenceWhy            string // why this node was fenced last

	// messages, used in turn so that none is allocated
	draft, last Heartbeat
	hbs         [scratch]Heartbeat
	acks        [scratch]Ack
	ackN        int
	proofs      int // sent since the last tick
}

// New returns a Core whose kernel table is closed (H1), at time now.
func New(cfg Config, now time.Duration) *Core {
	cfg.defaults()
	c := &Core{
		cfg: cfg, id: ID(cfg.Node), cluster: ClusterID(cfg.Cluster), words: max(1, cfg.Buckets/64), now: now,
		joinEar: now, started: now, maxLw: Watch(cfg.Lease), lastTick: now, streak: now, heldSince: now,
		wake: never, frameAt: now, cloneAt: -time.Hour, strangeAt: -time.Hour, since: unlisted,
		token: cfg.Incarnation, // the answer to a Barrier of an earlier life is none to one of this
	}
	for b := range c.releasedAt {
		c.releasedAt[b] = -time.Hour
	}
	return c
}

const never = time.Duration(1<<63 - 1)

// Actions returns what is to be done since the last call, in order; call it
// after every event. The slice is valid until the next event.
func (c *Core) Actions() []Action {
	out := c.out
	c.out, c.spare = c.spare[:0], out
	return out
}

// Next returns when Wake wants to be called, besides the ticks.
func (c *Core) Next() time.Duration { return c.wake }

func (c *Core) majority() bool { return len(c.cfg.Voters) > 0 }

// holdFor is how long after the last granted heartbeat was sent the open
// buckets are closed by hand (H4). The kernel ends them after L without it.
// Under majority this leaves half the lease to tell the others. Under lan
// whoever does not answer needs not be told: to close would only turn a short
// stall, of this node or another, into a loss of the share.
func (c *Core) holdFor() time.Duration {
	if c.majority() || c.cfg.mutant&closeEarly != 0 {
		return c.cfg.Lease / 2
	}
	return c.cfg.Lease - c.cfg.Interval
}

// deafAfter is how long after the newest heartbeat of ours that a peer echoed
// it is taken for deaf: before the kernel's lease ends, so that a deaf peer
// whom others can hear does not end what it cannot ack.
func (c *Core) deafAfter() time.Duration { return c.cfg.Lease * 5 / 12 }

// begin starts every event. A daemon that was stopped hears of it here before
// it acts on anything that waited for it meanwhile (H7).
func (c *Core) begin(now time.Duration) {
	c.now, c.drained = now, false
	if now-max(c.lastTick, c.streak) > c.cfg.Lease && c.cfg.mutant&countStalledSilence == 0 {
		c.listenAnew()
		c.fence(whyLate)
	}
}

// Tick is due every Interval, after all sockets were drained (H2).
func (c *Core) Tick(now time.Duration) {
	c.begin(now)
	c.drained = true
	late := c.slept()
	c.extra = 0
	for _, p := range c.peers {
		if !p.heard {
			continue
		}
		if p.missed++; late {
			p.missed = 0
		}
	}
	c.countSilence()
	c.probeAll()
	c.judgeSelf()
	c.give()
	c.endLinger()
	c.settleState()
	c.step()
	c.heartbeat()
	c.observe()
	c.observeMaster()
}

// countSilence forgets the peers that have been silent for too long, by ticks
// of our own that were on time (H8).
func (c *Core) countSilence() {
	for _, p := range c.peers {
		if p.heard && c.silentFor(p) > c.silence(p) {
			p.heard = false
		}
	}
}

// silentFor returns for how long p has not been heard while this node listened.
func (c *Core) silentFor(p *peer) time.Duration { return c.ear() - p.earRx }

func (c *Core) silence(p *peer) time.Duration {
	if c.cfg.mutant&takerDoesNotWait != 0 {
		return 3 * c.cfg.Interval
	}
	return Watch(max(p.hb.Lease, c.cfg.Lease))
}

// Wake does what has become due since the last event. It is called after all
// sockets were drained.
func (c *Core) Wake(now time.Duration) {
	c.begin(now)
	c.drained = true
	if now-c.lastTick < 2*c.cfg.Interval {
		c.countSilence()
	}
	c.finish()
}

// ours reports whether a message is of our cluster and share, and another's.
func (c *Core) ours(h *Header) bool {
	if h.Cluster != c.cluster || h.Share != c.cfg.Share {
		c.stats.ForeignCluster++
		return false
	}
	return true
}

// Receive acts on one message that was opened with the cluster's key. now is
// taken after it was read (V2). Only an assignment is kept; all else is the
// caller's again.
func (c *Core) Receive(now time.Duration, m Message) {
	c.begin(now)
	h := m.header()
	if !c.ours(h) {
		return
	}
	if h.From == c.id {
		c.ownName(m)
		return
	}
	fences, news := c.stats.Fences, true
	switch m := m.(type) {
	case *Heartbeat:
		news = c.heartbeatFrom(m)
	case *Ack:
		news = c.ackFrom(m)
	case *Assignment:
		c.adopt(m)
	case *Fetch:
		c.fetchFrom(m)
	case *Probe:
		c.prove(m)
	case *Proof:
		c.proofFrom(m)
	}
	if !news && c.stats.Fences == fences {
		return // it came by another way before: half of all do
	}
	c.finish()
}

// ownName acts on a message of another machine with this node's name. Of two
// newcomers, and of two that serve, the one with the lower host goes on.
func (c *Core) ownName(m Message) {
	switch m := m.(type) {
	case *Probe:
		c.prove(m)
		return
	case *Proof:
		if m.Inc != c.cfg.Incarnation && m.To == c.id && m.ToInc == c.cfg.Incarnation {
			c.namesake.alive = m.Inc
		}
		return
	}
	hb, ok := m.(*Heartbeat)
	if !ok || hb.Inc == c.cfg.Incarnation || hb.Host == c.cfg.Host {
		return
	}
	c.stats.OwnName++
	lower, lives := hb.Host < c.cfg.Host, c.namesakeLives(hb.Inc)
	switch {
	case c.state == Joining:
		switch {
		case !lives && c.namesakeIsGhost():
			c.cloneAt = -time.Hour
		case lower || hb.State != Joining:
			c.cloneAt = c.now
		}
	case lower && hb.State != Joining && lives:
		c.cloneAt = c.now
		c.fence(whyClone)
		c.finish()
	}
}

// Frame notes that an authentic message came as a frame to the shared MAC, the
// way that the clients' packets take.
func (c *Core) Frame(now time.Duration, m Message) {
	if h := m.header(); h.Cluster == c.cluster && h.Share == c.cfg.Share && h.From != c.id {
		c.now, c.frameAt = now, now
	}
}

// Foreign notes a message of a version too far from ours, as Decode returns
// it: only that its sender is there.
func (c *Core) Foreign(now time.Duration, m Message) {
	c.begin(now)
	h := m.header()
	if !c.ours(h) || h.From == c.id {
		return
	}
	c.stats.ForeignVersion++
	if p := c.addPeer(h.From); p != nil && !c.livesOn(p, h.Inc) {
		p.foreign, p.ancient, p.holds, p.lastRx, p.heard = true, true, true, now, false
	}
}

// Stranger notes that something which sends no heartbeats serves the share: it
// answers ARP for the VIP, say. A newcomer stays out for some seconds.
func (c *Core) Stranger(now time.Duration) { c.now, c.strangeAt = now, now }

func (c *Core) do(a Action) { c.out = append(c.out, a) }

func (c *Core) send(to NodeID, m Message) {
	c.do(Action{Kind: Send, To: to, Message: m})
}

func (c *Core) head() Header {
	return Header{c.cfg.Share, c.cluster, c.id, c.cfg.Incarnation}
}

// finish ends every event: act on what it changed, and tell at once.
func (c *Core) finish() {
	c.settleState()
	c.step()
	if (c.changed() || c.retryAt != 0 && c.now >= c.retryAt) && c.extra < c.extras() {
		c.extra++
		c.heartbeat()
	}
	c.observe()
}

// extras is how many heartbeats may be sent between two ticks: few where time
// is short, since each makes work for all.
func (c *Core) extras() int {
	if c.now-c.streak < c.cfg.Lease {
		return 2
	}
	return maxExtra
}

func (c *Core) step() {
	c.wake = never
	if c.cfg.Witness {
		c.depart()
		return
	}
	c.lead()
	c.settleConflicts()
	c.guard()
	c.evaluate()
	c.depart()
	c.prepare()
	c.steer()
	c.confirm()
	c.watchDeaf()
	for _, p := range c.peers {
		if at := c.now + c.silence(p) - c.silentFor(p); p.heard && at > c.now {
			c.later(at + time.Microsecond)
		}
	}
	if c.retryAt > c.now {
		c.later(c.retryAt)
	}
}

// later asks for a Wake at time at.
func (c *Core) later(at time.Duration) { c.wake = min(c.wake, at) }
