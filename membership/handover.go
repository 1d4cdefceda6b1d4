package membership

import (
	"time"

	"saru/partition"
)

// Hand-over of a bucket from a living director to another, make before break:
//
//	taker                                  giver
//	prepare: the assignment says mine,     give: Give, the handshakes so far, until
//	  the giver has it open: Barrier         the taker is ready
//	caughtUp: rest += b, read back
//	heartbeat: rest(b)            ──────►  releases: open -= b, read back; rest stays
//	wants, granted, settle        ◄──────  heartbeat without b; Give, those begun since
//	open += b                     ──────►  endLinger: after a while, when the taker
//	                                       serves and has caught up: rest -= b

// prepare asks for the connections of buckets that are this node's next and
// another's still (S1).
func (c *Core) prepare() {
	c.taking = c.taking.Minus(c.open)
	if c.now-c.adopted > c.cfg.Lease {
		// Until then a move under way is finished, whatever a newer assignment
		// says: the giver may have let go already, and nobody else is ready.
		c.taking = c.taking.Intersect(c.mine)
	}
	stops := c.state != Ready && c.state != Draining || c.closeAll || c.unsure
	if stops {
		c.taking = partition.Set{}
	}
	if stops || c.leaving { // who leaves begins no move
		for _, p := range c.peers {
			p.in = barrier{}
		}
		return
	}
	for _, p := range c.peers {
		if p.in.token != 0 && (!p.heard || c.now-p.in.at >= c.cfg.BarrierWait) {
			if p.heard {
				c.lateBarrier(p)
			}
			c.caughtUp(p)
		}
		if !p.heard {
			continue
		}
		if p.in.token == 0 && !c.mine.Empty() {
			need := c.mine.Intersect(p.hb.Open).Minus(c.open).Minus(c.taking)
			if need.Empty() {
				continue
			}
			if c.cfg.mutant&noBarrier != 0 {
				c.taking = c.taking.Union(need)
				continue
			}
			c.wait(p, &p.in, need, false)
		}
		if p.in.token != 0 {
			c.later(p.in.at + c.cfg.BarrierWait)
		}
	}
}

// giveEvery is shorter than the second after which a client repeats a SYN.
const giveEvery = 500 * time.Millisecond

// give has handshakes told in buckets that will be another's, as long as that one
// may be waiting for connections.
func (c *Core) give() {
	if c.open.Empty() || c.mine.Contains(c.open) || c.now-c.adopted >= c.cfg.BarrierWait {
		return
	}
	if c.gave < c.adopted || c.now-c.gave >= giveEvery {
		c.gave = c.now
		c.do(Action{Kind: Give})
	}
}

// wait starts waiting for a barrier with p on behalf of set.
func (c *Core) wait(p *peer, b *barrier, set partition.Set, back bool) {
	c.token++
	*b = barrier{c.token, c.now, set}
	c.do(Action{Kind: Barrier, N: c.token, To: p.id, Back: back})
}

func (c *Core) lateBarrier(p *peer) {
	c.stats.BarrierTimeouts++
	c.note(Event{Kind: BarrierLate, Node: p.hb.Name})
}

// caughtUp takes into rest what was waited for. What the barrier did not
// bring in time comes late: the backstop meets it with silence meanwhile.
func (c *Core) caughtUp(p *peer) {
	c.taking = c.taking.Union(p.in.set.Intersect(c.mine).Minus(c.open))
	p.in = barrier{}
}

// caughtBack ends the lingering of what p has taken over.
func (c *Core) caughtBack(p *peer) {
	if p.heard {
		c.lingering = c.lingering.Minus(p.back.set.Intersect(p.hb.Open))
	}
	p.back = barrier{}
}

// outdated returns what this node serves for those connections alone that it
// had when it gave the bucket up. It does not tell others of it: they would take
// it for ready to have the bucket back, and let go of connections that it
// does not know.
func (c *Core) outdated() partition.Set {
	return c.lingering.Minus(c.open).Minus(c.taking)
}

// releases returns the open buckets that their next owner is ready for (S2).
// With no taker, what is open stays.
func (c *Core) releases() (s partition.Set) {
	if c.assign == nil || c.mine.Contains(c.open) {
		return s
	}
	surplus := c.open.Minus(c.mine)
	if c.cfg.mutant&noTaker != 0 {
		return surplus
	}
	for _, p := range c.peers {
		if !p.director() || c.deaf(p) || p.hb.State != Ready && p.hb.State != Draining {
			continue
		}
		ready := surplus.Intersect(p.hb.Rest)
		if !ready.Empty() {
			s = s.Union(ready.Intersect(c.assign.Owned(p.id, p.inc)))
		}
	}
	return s
}

// endLinger lets go of rest (S5): some time after the release, when the
// bucket's taker serves it and has caught up; at last in any case.
func (c *Core) endLinger() {
	open := c.open
	if c.applying {
		open = c.asked // what is being released counts as open until then
	}
	c.lingering = c.lingering.Minus(open)
	if c.lingering.Empty() {
		return
	}
	var due partition.Set
	for b := range c.lingering.All() {
		switch age := c.now - c.lingerAt[b]; {
		case age >= c.cfg.LingerMax:
			c.lingering.Remove(b)
		case age >= c.cfg.Linger:
			due.Add(b)
		}
	}
	for _, p := range c.peers {
		if p.back.token != 0 && (!p.heard || c.now-p.back.at >= c.cfg.BarrierWait) {
			if p.heard {
				c.lateBarrier(p)
			}
			c.caughtBack(p)
		}
		if !p.director() || p.back.token != 0 {
			continue
		}
		if served := due.Intersect(p.hb.Open).Intersect(c.lingering); !served.Empty() {
			c.wait(p, &p.back, served, true)
		}
	}
}

// depart ends a leave: once nothing is left, nobody can take it, or it lasts
// too long, everything is closed.
func (c *Core) depart() {
	if !c.leaving || c.closeAll {
		return
	}
	idle := c.open.Empty() && c.lingering.Empty() && c.taking.Empty() && !c.applying
	if idle || !c.hasTaker() || c.now-c.leaveAt > c.cfg.LeaveWithin {
		c.taking, c.lingering = partition.Set{}, partition.Set{}
		c.closeAll, c.closeWhy = true, whyLeaving
	}
}

// hasTaker reports whether a director is there that could take the share.
func (c *Core) hasTaker() bool {
	for _, p := range c.peers {
		if p.director() && !c.lostUs(p) && !p.has(FlagGoing) && (p.hb.State == Ready || p.hb.State == Draining) {
			return true
		}
	}
	return false
}
