package membership

import (
	"time"

	"saru/partition"
)

// A promise is a voter's word that nobody else gets a bucket before until.
type promise struct {
	holder NodeID
	inc    uint64
	host   uint64
	until  time.Duration
}

func (c *Core) watch(lease time.Duration) time.Duration {
	if c.cfg.mutant&takerDoesNotWait != 0 {
		return 3 * c.cfg.Interval
	}
	return Watch(lease)
}

// ledgerSize is how many buckets may be promised: a witness knows their
// number from nobody.
func (c *Core) ledgerSize() int {
	if c.cfg.Witness {
		return MaxBuckets
	}
	return c.cfg.Buckets
}

// freeFor reports whether b may be promised to the incarnation inc of id.
func (c *Core) freeFor(b int, id NodeID, inc uint64) bool {
	p := &c.ledger[b]
	return p.holder == 0 || c.now > p.until || p.holder == id && p.inc == inc
}

// promise records the claims of one incarnation's newest heartbeat (V1): what
// it no longer claims is free, what it claims and nobody else was promised is
// promised to it.
func (c *Core) promise(hb *Heartbeat, claims partition.Set) (granted partition.Set) {
	c.free(hb.From, hb.Inc, hb.Host, claims)
	until := c.now + c.watch(hb.Lease)
	if s := c.echo(hb); s != nil && c.cfg.mutant&watchFromSending != 0 {
		until = s.at + hb.Lease
	}
	for b := range claims.All() {
		if b < c.ledgerSize() && c.freeFor(b, hb.From, hb.Inc) {
			c.ledger[b] = promise{hb.From, hb.Inc, hb.Host, until}
			granted.Add(b)
		}
	}
	return granted
}

// free ends the promises to id that its incarnation inc does not claim. One of
// another life ends only if that one's kernel was closed by this one's start.
func (c *Core) free(id NodeID, inc, host uint64, claims partition.Set) {
	for b := range c.ledgerSize() {
		p := &c.ledger[b]
		if p.holder == id && (p.inc == inc && !claims.Has(b) || p.inc != inc && p.host == host) {
			*p = promise{}
		}
	}
}

// silent reports whether this voter may still owe promises that it made
// before it was restarted (V3).
func (c *Core) silent() bool {
	return c.now-c.started <= c.maxLw && c.cfg.mutant&noSilence == 0
}

// otherShape reports whether this node is a witness that still owes promises
// to another shape than hb's: their buckets are other packets.
func (c *Core) otherShape(hb *Heartbeat) bool {
	if !c.cfg.Witness || hb.Shape == c.shape {
		return false
	}
	for b := range c.ledger {
		if p := &c.ledger[b]; p.holder != 0 && c.now <= p.until {
			return true
		}
	}
	c.shape = hb.Shape
	return false
}

// vote answers the newest heartbeat of a peer.
func (c *Core) vote(hb *Heartbeat) {
	c.ackN++
	ack := &c.acks[c.ackN%scratch]
	*ack = Ack{Header: c.head(), To: hb.From, ToInc: hb.Inc, N: hb.N, Words: hb.Words}
	ack.Epoch, ack.Hash = c.epoch()
	switch {
	case c.otherShape(hb):
		ack.Refused = hb.Claims()
	case c.silent():
		c.promise(hb, hb.Open)
	default:
		claims := hb.Claims()
		if c.cfg.mutant&ineligibleIsFree != 0 && hb.State != Ready {
			claims = partition.Set{}
		}
		ack.Granted = c.promise(hb, claims)
		ack.Refused = claims.Minus(ack.Granted)
		c.stats.Refused += uint64(ack.Refused.Len())
	}
	c.send(hb.From, ack)
}

// quorum is how many voters are a majority.
func (c *Core) quorum() int { return len(c.cfg.Voters)/2 + 1 }

// votes reports whether id is a voter.
func (c *Core) votes(id NodeID) bool {
	for _, v := range c.cfg.Voters {
		if v == id {
			return true
		}
	}
	return false
}

// votersHeard returns how many voters hear this node and are heard, itself
// included.
func (c *Core) votersHeard() int {
	n := 0
	for _, v := range c.cfg.Voters {
		if p := c.peer(v); v == c.id || p != nil && c.mutual(p) {
			n++
		}
	}
	return n
}
