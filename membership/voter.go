package membership

import (
	"time"

	"saru/partition"
)

// A promise is a voter's word that nobody else gets a bucket before until.
type promise struct {
	holder NodeID
	inc    uint64
	until  time.Duration
}

func (c *Core) watch(lease time.Duration) time.Duration {
	if c.cfg.mutant&takerDoesNotWait != 0 {
		return 3 * c.cfg.Interval
	}
	return Watch(lease)
}

// freeFor reports whether b may be promised to the incarnation inc of id.
func (c *Core) freeFor(b int, id NodeID, inc uint64) bool {
	p := &c.ledger[b]
	return p.holder == 0 || c.now > p.until || p.holder == id && p.inc == inc
}

// promise records the claims of one incarnation's newest heartbeat (V1): what
// it no longer claims is free, what it claims and nobody else was promised is
// promised to it.
func (c *Core) promise(id NodeID, inc uint64, lease time.Duration, claims partition.Set) (granted partition.Set) {
	c.free(id, inc, claims)
	until := c.now + c.watch(lease)
	for b := range claims.All() {
		if b < c.cfg.Buckets && c.freeFor(b, id, inc) {
			c.ledger[b] = promise{id, inc, until}
			granted.Add(b)
		}
	}
	return granted
}

// free ends the promises to id that its incarnation inc does not claim.
func (c *Core) free(id NodeID, inc uint64, claims partition.Set) {
	for b := range c.cfg.Buckets {
		if p := &c.ledger[b]; p.holder == id && (p.inc != inc || !claims.Has(b)) {
			*p = promise{}
		}
	}
}

// silent reports whether this voter may still owe promises that it made
// before it was restarted (V3).
func (c *Core) silent() bool {
	return c.now-c.started <= c.maxLw && c.cfg.mutant&noSilence == 0
}

// vote answers the newest heartbeat of a peer.
func (c *Core) vote(hb *Heartbeat) {
	ack := &Ack{Header: c.head(), To: hb.From, ToInc: hb.Inc, N: hb.N, Words: c.words}
	ack.Epoch, ack.Hash = c.epoch()
	if c.silent() {
		c.promise(hb.From, hb.Inc, hb.Lease, hb.Open)
	} else {
		claims := hb.Claims()
		if c.cfg.mutant&ineligibleIsFree != 0 && hb.State != Ready {
			claims = partition.Set{}
		}
		ack.Granted = c.promise(hb.From, hb.Inc, hb.Lease, claims)
		ack.Refused = claims.Minus(ack.Granted)
		c.stats.Refused += uint64(ack.Refused.Len())
	}
	c.send(hb.From, ack)
}

// echo returns what hb says that its sender heard of us, and when we sent it.
func (c *Core) echo(hb *Heartbeat) (at time.Duration, ok bool) {
	for _, e := range hb.Heard {
		if e.Node == c.id && e.Inc == c.cfg.Incarnation {
			if s := &c.sent[e.N%ringSize]; s.n == e.N && e.N != 0 {
				return s.at, true
			}
			return 0, false
		}
	}
	return 0, false
}

// heartbeatFrom acts on a peer's heartbeat.
func (c *Core) heartbeatFrom(hb *Heartbeat) {
	p := c.peer(hb.From)
	if p == nil {
		c.stats.TooManyNodes++
		return
	}
	if hb.Shape != c.cfg.Shape || hb.Words != c.words {
		c.stats.ForeignShape++
		p.foreign, p.lastRx, p.heard = true, c.now, false
		return
	}
	echoed, echoes := c.echo(hb)
	fresh := echoes && c.now-echoed <= c.maxLw
	switch {
	case p.hb == nil:
	case p.inc == hb.Inc && hb.N <= p.hb.N:
		c.stats.OldHeartbeats++
		return
	case p.inc != hb.Inc && p.heard && !fresh:
		// A delayed heartbeat of a life before must not undo this one's:
		// only who answers us now is newer.
		c.stats.UnknownInc++
		return
	}
	if !p.heard && c.countHeard() >= MaxNodes-1 {
		c.stats.TooManyNodes++
		return
	}
	c.stats.Heartbeats++
	c.noteReleases(p, hb)
	if !p.heard || p.inc != hb.Inc {
		p.since, p.echoAt = c.now, -time.Hour
	}
	if echoes {
		p.echoAt = max(p.echoAt, echoed)
	}
	p.inc, p.hb, p.foreign = hb.Inc, hb, false
	p.lastRx, p.missed = c.now, 0
	p.left = hb.Flags&FlagLeave != 0
	p.heard = !p.left
	c.maxLw = max(c.maxLw, Watch(hb.Lease))
	if p.left {
		c.promise(hb.From, hb.Inc, hb.Lease, partition.Set{})
	} else if fresh {
		// Whoever does not hear us gets no promise: it would not learn of it,
		// and a deaf node's claims must not keep a bucket from the others.
		c.vote(hb)
	}
	c.wantEpoch(p, hb.Epoch)
}

func (c *Core) countHeard() int {
	n := 0
	for _, p := range c.peers {
		if p.heard {
			n++
		}
	}
	return n
}

// noteReleases notes when a peer let go of buckets, for settle (S4).
func (c *Core) noteReleases(p *peer, hb *Heartbeat) {
	if p.hb == nil || !p.heard {
		return
	}
	var now partition.Set
	if p.inc == hb.Inc {
		now = hb.Open
	}
	for b := range p.hb.Open.Minus(now).All() {
		if b < MaxBuckets {
			c.releasedAt[b] = c.now
		}
	}
}
