package membership

import (
	"cmp"
	"slices"
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
	// suspectAfter is after how many ticks without a heartbeat a peer's ack is
	// no longer waited for to keep what is open. The third tick would come
	// too late for holdFor.
	suspectAfter = 2
	// foreignFor is for how long a foreign heartbeat blocks gains.
	foreignFor = 5 * time.Second
)

// Watch returns L_w: for how long a watcher must wait until a lease that it
// saw claimed has surely ended, by any clocks that differ by 1 % each.
func Watch(lease time.Duration) time.Duration { return (lease + lateness) * 103 / 100 }

// A Config is what a Core needs to know of its node and its share.
type Config struct {
	Node        string // at most MaxName bytes
	Incarnation uint64 // random, new at every start
	Cluster     string
	Share       uint16
	Shape       uint64        // hash of all that decides a packet
	Buckets     int           // a power of two, 2 to MaxBuckets
	Lease       time.Duration // L
	Interval    time.Duration // I, between ticks
	Arm         time.Duration // a: how long after arming a heartbeat it can be confirmed
	Settle      time.Duration // between another's release of a bucket and its opening here
	Weight      uint16

	mutant mutant // deliberate errors, for tests
}

// A Kind says what an Action is.
type Kind uint8

// The actions.
const (
	Arm     Kind = iota // arm N, before heartbeat N is sent
	Send                // send Message to the node To, or to all when To is 0
	Confirm             // renew the lease if N is still armed
	Apply               // make Open the kernel's open set; answer with Applied
)

// An Action is something to be done outside, in order.
type Action struct {
	Kind    Kind
	N       uint64
	To      NodeID
	Message Message
	Open    partition.Set
	Gained  partition.Set // of Open: the buckets that were not open before
}

// Stats counts what a Core saw. Every way a message can be refused has one.
type Stats struct {
	Heartbeats      uint64 // acted on
	Acks            uint64
	OldHeartbeats   uint64 // older than or equal to one seen (V2)
	UnknownInc      uint64 // of another incarnation, without a fresh echo of ours
	ForeignCluster  uint64
	ForeignShape    uint64
	OwnName         uint64 // another node uses our name
	TooManyNodes    uint64
	StaleAcks       uint64
	BadAssignments  uint64
	EpochConflicts  uint64 // one epoch with two contents
	Refused         uint64 // buckets refused to others
	LostGrants      uint64 // buckets open here and refused by others
	Fences          uint64 // H7
	Mutes           uint64 // H6: closed because a peer does not hear us
	LateTicks       uint64
	Confirms        uint64
	ApplyFailures   uint64
	AssignmentsMade uint64
}

type sentHB struct {
	n    uint64
	at   time.Duration
	open partition.Set
	want partition.Set
	acks []vote
}

type vote struct {
	from    NodeID
	granted partition.Set
	refused partition.Set
}

type peer struct {
	id       NodeID
	inc      uint64
	hb       *Heartbeat // the newest
	heard    bool
	left     bool
	foreign  bool
	since    time.Duration // start of the present streak of being heard
	lastRx   time.Duration
	echoAt   time.Duration // when the newest of our heartbeats that it echoed was sent
	missed   int           // ticks since its last heartbeat
	fetched  time.Duration // when an assignment was last asked of it
	answered time.Duration // when one was last sent to it
}

// A Core is one director's side of the protocol. It does no I/O and is not
// safe for concurrent use. Times are monotonic, since any one origin.
//
//	          L_w of on-time ticks, gate
//	Joining ------------------------------> Ready <--> Draining
//	   ^                                      |            |
//	   |      all closed                      | lease lapsed, tick late
//	   +----------------- Fenced <------------+------------+
type Core struct {
	cfg   Config
	id    NodeID
	words int
	now   time.Duration
	out   []Action
	stats Stats

	state     State
	joinSince time.Duration
	gateFull  bool
	gateCold  bool
	drain     bool
	linkDown  bool
	leaving   bool
	farewells int
	pingAt    time.Duration

	// holder
	n          uint64
	sent       [ringSize]sentHB
	open       partition.Set // what the kernel may have open
	sure       partition.Set // what it had at the last read back
	unsure     bool          // the last read back failed
	applying   bool
	asked      partition.Set // of the apply under way
	closeReq   partition.Set // to close whatever the assignment says
	closeAll   bool
	minConfirm uint64
	confirmed  uint64
	confirmAt  time.Duration // when heartbeat confirmed was sent
	heldSince  time.Duration // when open was last empty
	cleared    [MaxBuckets]uint64
	releasedAt [MaxBuckets]time.Duration
	wake       time.Duration

	// voter
	started time.Duration
	maxLw   time.Duration
	ledger  [MaxBuckets]promise

	// who is here
	peers    map[NodeID]*peer
	lastTick time.Duration
	streak   time.Duration // since when all ticks were on time
	extra    int
	lastHB   *Heartbeat

	// master
	assign *Assignment
	mine   partition.Set
}

// New returns a Core whose kernel table is closed (H1), at time now.
func New(cfg Config, now time.Duration) *Core {
	c := &Core{
		cfg: cfg, id: ID(cfg.Node), words: max(1, cfg.Buckets/64), now: now,
		joinSince: now, started: now, maxLw: Watch(cfg.Lease), lastTick: now, streak: now, heldSince: now,
		peers: map[NodeID]*peer{}, wake: never,
	}
	for b := range c.releasedAt {
		c.releasedAt[b] = -time.Hour
	}
	return c
}

const never = time.Duration(1<<63 - 1)

// Actions returns what is to be done since the last call, in order. The slice
// is valid until the next call of any method.
func (c *Core) Actions() []Action {
	out := c.out
	c.out = c.out[len(c.out):]
	return out
}

// Next returns when Wake wants to be called, besides the ticks.
func (c *Core) Next() time.Duration { return c.wake }

// holdFor is how long after the last granted heartbeat was sent the open
// buckets are closed by hand (H4). The kernel ends them after L without it;
// this leaves a third of the lease to tell the others, and lets a peer be
// suspected first.
func (c *Core) holdFor() time.Duration { return c.cfg.Lease * 2 / 3 }

// begin starts every event. A daemon that was stopped hears of it here before
// it acts on anything that waited for it meanwhile (H7).
func (c *Core) begin(now time.Duration) {
	c.now = now
	if now-max(c.lastTick, c.streak) > c.cfg.Lease && c.cfg.mutant&countStalledSilence == 0 {
		c.streak = now
		c.fence()
	}
}

// deafAfter is how long after the newest heartbeat of ours that a peer echoed
// it is taken for deaf: before holdFor, so that a deaf peer whom others can
// hear does not close what it cannot ack.
func (c *Core) deafAfter() time.Duration { return c.cfg.Lease / 2 }

// Tick is due every Interval, after all sockets were drained (H2).
func (c *Core) Tick(now time.Duration) {
	c.begin(now)
	gap := now - c.lastTick
	c.lastTick = now
	c.extra = 0
	late := gap >= 2*c.cfg.Interval
	if late {
		c.stats.LateTicks++
		if c.cfg.mutant&countStalledSilence == 0 {
			c.streak = now
			if c.state == Joining {
				c.joinSince = now
			}
		}
	}
	for _, p := range c.peers {
		if !p.heard {
			continue
		}
		if p.missed++; late {
			p.missed = 0
		}
		if now-max(p.lastRx, c.streak) > c.silence(p) {
			p.heard = false
		}
	}
	c.settleState()
	c.step()
	c.heartbeat()
}

func (c *Core) silence(p *peer) time.Duration {
	if c.cfg.mutant&takerDoesNotWait != 0 {
		return 3 * c.cfg.Interval
	}
	return Watch(max(p.hb.Lease, c.cfg.Lease))
}

// Wake does what has become due since the last event.
func (c *Core) Wake(now time.Duration) {
	c.begin(now)
	c.finish()
}

// Receive acts on one message that was opened with the cluster's key. now is
// taken after it was read (V2).
func (c *Core) Receive(now time.Duration, m Message) {
	c.begin(now)
	h := m.header()
	if h.Cluster != ClusterID(c.cfg.Cluster) || h.Share != c.cfg.Share {
		c.stats.ForeignCluster++
		return
	}
	if h.From == c.id {
		if h.Inc != c.cfg.Incarnation {
			c.stats.OwnName++
		}
		return
	}
	switch m := m.(type) {
	case *Heartbeat:
		c.heartbeatFrom(m)
	case *Ack:
		c.ackFrom(m)
	case *Assignment:
		c.adopt(m)
	case *Fetch:
		c.fetchFrom(m)
	}
	c.finish()
}

// Foreign notes a node that speaks another version of the protocol.
func (c *Core) Foreign(now time.Duration, from NodeID) {
	c.begin(now)
	if p := c.peer(from); p != nil {
		p.foreign, p.lastRx = true, now
	}
}

// Applied answers an Apply: open is what was read back afterwards; known says
// whether that could be done.
func (c *Core) Applied(now time.Duration, open partition.Set, known bool) {
	c.begin(now)
	if !c.applying {
		return
	}
	c.applying = false
	c.unsure = !known
	if known {
		if open != c.asked {
			c.stats.ApplyFailures++
		}
		c.sure = open
		c.setOpen(open)
		if c.closeReq.Intersect(open) != c.closeReq {
			c.minConfirm = c.n + 1
		}
		c.closeReq = c.closeReq.Intersect(open)
	} else {
		c.stats.ApplyFailures++
	}
	if c.closeAll && known && open.Empty() {
		c.closeAll = false
		if c.state == Fenced {
			c.state = Joining
			c.joinSince = now
		}
	}
	c.finish()
}

// Lost says that the kernel's table was found changed by others and has been
// replaced by a closed one.
func (c *Core) Lost(now time.Duration) {
	c.begin(now)
	if !c.applying {
		c.sure = partition.Set{}
		c.setOpen(partition.Set{})
	}
	c.finish()
}

// SetGate tells the state gate: full, this node holds the cluster's
// connections; cold, it may serve if nobody else does.
func (c *Core) SetGate(now time.Duration, full, cold bool) {
	c.now, c.gateFull, c.gateCold = now, full, cold
}

// PingOK says that a ping node answered: our sending works.
func (c *Core) PingOK(now time.Duration) { c.now, c.pingAt = now, now }

// Drain gives the share away, or takes part again.
func (c *Core) Drain(now time.Duration, on bool) {
	c.begin(now)
	c.drain = on
	switch {
	case on && c.state == Ready:
		c.state = Draining
	case !on && c.state == Draining:
		c.state = Ready
	}
	c.finish()
}

// Fence closes everything and joins anew, as after a lost carrier (H7).
func (c *Core) Fence(now time.Duration) {
	c.begin(now)
	c.fence()
	c.finish()
}

// Leave closes everything and then says farewell.
func (c *Core) Leave(now time.Duration) {
	c.begin(now)
	c.leaving, c.closeAll = true, true
	c.finish()
}

// Gone reports whether all is closed and the farewell was sent a few times.
func (c *Core) Gone() bool { return c.farewells >= 3 }

func (c *Core) do(a Action) { c.out = append(c.out, a) }

func (c *Core) send(to NodeID, m Message) {
	c.do(Action{Kind: Send, To: to, Message: m})
}

func (c *Core) head() Header {
	return Header{c.cfg.Share, ClusterID(c.cfg.Cluster), c.id, c.cfg.Incarnation}
}

func (c *Core) peer(id NodeID) *peer {
	if p := c.peers[id]; p != nil {
		return p
	}
	if len(c.peers) >= maxPeers {
		var oldest *peer
		for _, p := range c.peers {
			if !p.heard && (oldest == nil || p.lastRx < oldest.lastRx) {
				oldest = p
			}
		}
		if oldest == nil {
			return nil
		}
		delete(c.peers, oldest.id)
	}
	p := &peer{id: id, echoAt: -time.Hour, fetched: -time.Hour, answered: -time.Hour}
	c.peers[id] = p
	return p
}

// heardPeers returns the peers heard, in the order of their ids.
func (c *Core) heardPeers() []*peer {
	var ps []*peer
	for _, p := range c.peers {
		if p.heard {
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
	return ps
}

// settleState passes the gate when it may be passed (H7, state gate).
func (c *Core) settleState() {
	if c.state != Joining || c.leaving || c.linkDown || c.closeAll || c.unsure || !c.open.Empty() {
		return
	}
	if c.now-c.joinSince <= c.maxLw || c.foreign() {
		return
	}
	if !c.gateFull && (!c.gateCold || c.served()) {
		return
	}
	c.state = Ready
	if c.drain {
		c.state = Draining
	}
}

// served reports whether anybody who is heard holds a bucket.
func (c *Core) served() bool {
	for _, p := range c.peers {
		if p.heard && !p.hb.Open.Empty() {
			return true
		}
	}
	return false
}

func (c *Core) foreign() bool {
	for _, p := range c.peers {
		if p.foreign && c.now-p.lastRx < foreignFor {
			return true
		}
	}
	return false
}

// finish ends every event: act on what it changed, and tell at once.
func (c *Core) finish() {
	c.settleState()
	c.step()
	if c.changed() && c.extra < maxExtra {
		c.extra++
		c.heartbeat()
	}
}

func (c *Core) step() {
	c.wake = never
	c.lead()
	c.guard()
	c.evaluate()
	c.steer()
	c.confirm()
}

// SetLink tells whether the LAN's carrier is there. Without it everything is
// closed, and the share waits until it is back (H7).
func (c *Core) SetLink(now time.Duration, up bool) {
	c.begin(now)
	if c.linkDown == !up {
		return
	}
	c.linkDown = !up
	if c.linkDown {
		c.fence()
	}
	c.joinSince = now
	c.finish()
}
