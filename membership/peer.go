package membership

import (
	"cmp"
	"slices"
	"time"

	"saru/partition"
)

const (
	// suspectAfter is after how many ticks without a heartbeat a peer's ack is
	// no longer waited for to keep what is open. With a third tick, what is
	// left of the kernel's lease would not do for a stall of our own.
	suspectAfter = 2
	// foreignFor is for how long a foreign heartbeat blocks newcomers.
	foreignFor = 5 * time.Second
)

// A peer is another node, as its heartbeats show it.
type peer struct {
	id       NodeID
	inc      uint64
	hb       Heartbeat // the newest, if known
	known    bool
	ancient  bool          // foreign, and of a version that may not know of proofs
	alive    uint64        // the incarnation that has proved that it lives
	proofAt  time.Duration // when it last did
	doubtEar time.Duration // since when it has been heard without (listening clock), or -1
	ghost    bool          // only recordings of it are heard
	probed   time.Duration // when it was last asked to
	heard    bool
	left     bool
	foreign  bool
	holds    bool          // foreign, and perhaps with buckets open
	since    time.Duration // start of the present streak of being heard
	lastRx   time.Duration
	earRx    time.Duration // the same by the listening clock
	echoAt   time.Duration // when the newest of our heartbeats that it echoed was sent
	echoEar  time.Duration // the same, or when it was first heard, by the listening clock
	cloneAt  time.Duration // when another machine was last heard under its name
	missed   int           // ticks since its last heartbeat
	fetched  time.Duration // when an assignment was last asked of it
	answered time.Duration // when one was last sent to it
	shown    string        // its state, as the last event about it told
	shownInc uint64
	in       barrier // we catch up with it
	back     barrier // it catches up with us

	heardBuf  [MaxNodes]Echo
	votersBuf [MaxNodes]NodeID
}

// A barrier is waited for on behalf of some buckets. Token 0: none is.
type barrier struct {
	token uint64
	at    time.Duration
	set   partition.Set
}

// keep makes hb the newest heartbeat of p.
func (p *peer) keep(hb *Heartbeat) {
	p.hb, p.known = *hb, true
	p.hb.Heard = append(p.heardBuf[:0], hb.Heard...)
	p.hb.Voters = append(p.votersBuf[:0], hb.Voters...)
}

func (p *peer) has(flag uint16) bool { return p.hb.Flags&flag != 0 }

// director reports whether p is heard and may have or take a share.
func (p *peer) director() bool { return p.heard && !p.has(FlagWitness) }

func (c *Core) peer(id NodeID) *peer {
	i, ok := slices.BinarySearchFunc(c.peers, id, func(p *peer, id NodeID) int { return cmp.Compare(p.id, id) })
	if !ok {
		return nil
	}
	return c.peers[i]
}

// addPeer returns the peer with that id, which may take the place of one that
// has not been heard for long. It returns nil if there are too many.
func (c *Core) addPeer(id NodeID) *peer {
	if p := c.peer(id); p != nil {
		return p
	}
	if len(c.peers) >= maxPeers {
		oldest := -1
		for i, p := range c.peers {
			if !p.heard && (oldest < 0 || p.lastRx < c.peers[oldest].lastRx) {
				oldest = i
			}
		}
		if oldest < 0 {
			return nil
		}
		c.peers = slices.Delete(c.peers, oldest, oldest+1)
	}
	p := &peer{id: id, echoAt: -time.Hour, fetched: -time.Hour, answered: -time.Hour, cloneAt: -time.Hour, probed: -time.Hour, proofAt: -time.Hour, doubtEar: -1}
	i, _ := slices.BinarySearchFunc(c.peers, id, func(p *peer, id NodeID) int { return cmp.Compare(p.id, id) })
	c.peers = slices.Insert(c.peers, i, p)
	return p
}

func (c *Core) countHeard() int {
	n := 0
	for _, p := range c.peers {
		if p.heard && c.proven(p) {
			n++
		}
	}
	return n
}

// deaf reports whether p, who is heard, has not heard us for some time.
func (c *Core) deaf(p *peer) bool {
	return c.now-max(p.echoAt, p.since) > c.deafAfter()
}

// lostUs reports whether p has been deaf for so long that it is no taker. Time
// in which we slept, and sent nothing to echo, is none of it.
func (c *Core) lostUs(p *peer) bool { return c.ear()-p.echoEar > c.cfg.Lease }

// mutual reports whether p and we hear each other now.
func (c *Core) mutual(p *peer) bool {
	return p.heard && c.now-p.echoAt <= c.deafAfter()
}

// watchDeaf asks to be woken when a peer becomes deaf: what it does not ack
// may then be kept, which the next tick would be too late for.
func (c *Core) watchDeaf() {
	if c.open.Empty() || c.majority() {
		return
	}
	for _, p := range c.peers {
		if p.director() && !c.deaf(p) {
			c.later(max(p.echoAt, p.since) + c.deafAfter() + time.Microsecond)
		}
	}
}

// confirmedSender reports whether somebody other than p hears us, so that p's
// not hearing us is p's failure and not ours.
func (c *Core) confirmedSender(p *peer) bool {
	if c.pingAt > 0 && c.now-c.pingAt < c.cfg.Lease {
		return true
	}
	for _, q := range c.peers {
		other := q != p || q.alive != q.hb.Inc // than whose heartbeats these are
		if q != p && c.mutual(q) || other && c.now-q.proofAt < c.cfg.Lease {
			return true
		}
	}
	return false
}

// hearsNobody reports whether p is deaf altogether: whatever it concludes, the
// clients' frames take the way of the heartbeats that it does not hear.
func (c *Core) hearsNobody(p *peer) bool {
	return c.deaf(p) && c.confirmedSender(p) && len(p.hb.Heard) == 0 && !c.parted(p)
}

// parted reports whether somebody besides p has left so lately that p may have
// heard it until then: p's list is empty at once when the last whom it heard
// leaves, and this shows nothing of p's hearing before silence would have.
func (c *Core) parted(p *peer) bool {
	for _, q := range c.peers {
		if q != p && q.left && c.silentFor(q) <= c.silence(q) {
			return true
		}
	}
	return false
}

// suspected reports whether p is taken for dead as far as keeping goes. Who
// did not hear us when it was last heard is not dead but perhaps taking over.
func (c *Core) suspected(p *peer) bool {
	return p.missed >= suspectAfter && p.lastRx-p.echoAt <= c.deafAfter()
}

// served reports whether anybody who is heard holds a bucket.
func (c *Core) served() bool {
	for _, p := range c.peers {
		if p.heard && !p.hb.Open.Empty() && !c.ghost(p) {
			return true
		}
	}
	return false
}

// strange reports whether somebody is there whom this node cannot agree with:
// a newcomer then stays out.
func (c *Core) strange() bool {
	for _, p := range c.peers {
		if p.foreign && c.now-p.lastRx < foreignFor && !c.ghost(p) {
			return true
		}
	}
	return c.cloned() || c.now-c.strangeAt < foreignFor
}

// cloned reports whether another machine uses this node's name.
func (c *Core) cloned() bool { return c.now-c.cloneAt < foreignFor }

// blocked reports whether somebody with whom this node cannot agree may have
// buckets open: it then takes nothing more.
func (c *Core) blocked() bool {
	for _, p := range c.peers {
		if p.foreign && p.holds && c.now-p.lastRx < foreignFor && !c.ghost(p) {
			return true
		}
	}
	return false
}

// compatible reports whether hb's sender divides the same share by the same
// rules.
func (c *Core) compatible(hb *Heartbeat) bool {
	if c.cfg.Witness || hb.Flags&FlagWitness != 0 {
		return true
	}
	if hb.Shape != c.cfg.Shape || hb.Words != c.words || (len(hb.Voters) > 0) != c.majority() {
		return false
	}
	// Any majorities of two lists that differ in one voter share a voter.
	missing, extra := 0, 0
	for _, v := range c.cfg.Voters {
		if !slices.Contains(hb.Voters, v) {
			missing++
		}
	}
	for _, v := range hb.Voters {
		if !slices.Contains(c.cfg.Voters, v) {
			extra++
		}
	}
	return missing+extra <= 1
}

// heartbeatFrom acts on a peer's heartbeat, and reports whether it was news.
func (c *Core) heartbeatFrom(hb *Heartbeat) bool {
	p := c.addPeer(hb.From)
	if p == nil {
		c.stats.TooManyNodes++
		return true
	}
	if !c.compatible(hb) {
		c.stats.ForeignShape++
		if c.livesOn(p, hb.Inc) {
			return true
		}
		p.keep(hb)
		p.foreign, p.lastRx, p.heard = true, c.now, false
		p.ancient, p.holds = false, hb.State != Joining || !hb.Open.Empty()
		c.doubt(p)
		return true
	}
	echoed := c.echo(hb)
	fresh := echoed != nil && c.now-echoed.at <= c.maxLw
	if fresh {
		c.proves(p, hb.Inc)
	}
	switch {
	case !p.known || p.foreign:
	case p.inc != hb.Inc && p.heard && !c.proven(p):
		// Two lives of one node, of which the one that answers is no recording.
		if hb.Inc != p.alive {
			c.stats.UnknownInc++
			c.doubt(p)
			return true
		}
	case p.inc == hb.Inc && hb.N <= p.hb.N:
		c.stats.OldHeartbeats++
		return false
	case p.inc != hb.Inc && p.heard && p.hb.Host != hb.Host:
		// Who restarts has closed its kernel first; another machine has not.
		c.stats.Clones++
		p.cloneAt = c.now
		return true
	case p.inc != hb.Inc && p.heard && !fresh:
		// A delayed heartbeat of a life before must not undo this one's:
		// only who answers us now is newer.
		c.stats.UnknownInc++
		return true
	}
	if !p.heard && c.countHeard() >= MaxNodes-1 {
		c.stats.TooManyNodes++
		return true
	}
	c.stats.Heartbeats++
	c.noteReleases(p, hb)
	if !p.heard || p.inc != hb.Inc {
		p.since, p.echoAt, p.echoEar = c.now, -time.Hour, c.ear()
		p.in, p.back = barrier{}, barrier{}
	}
	if echoed != nil {
		p.echoAt, p.echoEar = max(p.echoAt, echoed.at), max(p.echoEar, echoed.ear)
	}
	p.keep(hb)
	p.inc, p.foreign = hb.Inc, false
	p.lastRx, p.earRx, p.missed = c.now, c.ear(), 0
	p.left = p.has(FlagLeave) || p.has(FlagAside)
	p.heard = !p.left
	if c.doubt(p); c.proven(p) {
		c.maxLw = max(c.maxLw, Watch(hb.Lease))
	}
	if fresh { // an old recording must not freeze anybody, nor vouch
		c.freeze = max(c.freeze, hb.Freeze)
		c.vouch(hb)
	}
	if p.left {
		c.promise(hb, partition.Set{})
	} else if echoed != nil && c.now-echoed.at <= c.cfg.Lease/2 {
		// Whoever does not hear us gets no promise: it would not learn of it,
		// and a deaf node's claims must not keep a bucket from the others.
		c.vote(hb)
	}
	c.wantEpoch(p, hb.Epoch)
	return true
}

// echo returns the heartbeat of ours that hb says that its sender heard, or
// nil.
func (c *Core) echo(hb *Heartbeat) *sentHB {
	for _, e := range hb.Heard {
		if e.Node == c.id && e.Inc == c.cfg.Incarnation {
			if s := &c.sent[e.N%ringSize]; s.n == e.N && e.N != 0 {
				return s
			}
			return nil
		}
	}
	return nil
}

// noteReleases notes when a peer let go of buckets, for settle (S4).
func (c *Core) noteReleases(p *peer, hb *Heartbeat) {
	if !p.known || !p.heard {
		return
	}
	gone := p.hb.Open
	if p.inc == hb.Inc {
		gone = gone.Minus(hb.Open)
	}
	for b := range gone.All() {
		if b < MaxBuckets {
			c.releasedAt[b] = c.now
		}
	}
}
