package membership

import "time"

// Recordings. A node that was started anew has forgotten which messages it has
// seen, so what was recorded before can be sent to it again: sealed with the
// right key, and of nodes that may be long gone. So a heartbeat counts only
// once its sender has proved, to this incarnation, that it lives: by any
// message that names this incarnation, which nobody could know before. A Probe
// asks for one.
//
// Until then a peer is only a presence. It does not keep a holder from
// renewing what it has. It does keep a newcomer out, since it may be a node
// that this one cannot reach; until it has not answered for L_w while others, or
// a ping node, show that what this node sends arrives (the same judgement as of
// the deaf, H6). Then it is a ghost, and ignored.

// proven reports whether p has shown that it lives.
func (c *Core) proven(p *peer) bool {
	return p.alive != 0 && p.alive == p.hb.Inc || c.cfg.mutant&believesRecordings != 0
}

// proves notes that inc of p named this incarnation.
func (c *Core) proves(p *peer, inc uint64) {
	p.alive, p.proofAt = inc, c.now
	if inc == p.hb.Inc {
		p.doubtEar, p.ghost = -1, false
	}
}

// vouch takes the word of hb, which answers what this node sent lately, for
// those whom it lists: somebody who does not hear this node cannot answer it, and
// is no ghost. Only a heartbeat that is as new as the one that was listed counts:
// older ones of the same life may be recordings.
func (c *Core) vouch(hb *Heartbeat) {
	for _, e := range hb.Heard {
		p := c.peer(e.Node)
		if p != nil && p.heard && !c.proven(p) && p.hb.Inc == e.Inc && p.hb.N >= e.N {
			p.alive, p.doubtEar, p.ghost = e.Inc, -1, false
		}
	}
}

// livesOn reports whether p is heard and has proved itself, in another life than
// inc, which has not: what inc says may be a recording, and must not make p one
// with whom this node cannot agree. It is asked to prove itself.
func (c *Core) livesOn(p *peer, inc uint64) bool {
	if !p.heard || !c.proven(p) || inc == p.hb.Inc {
		return false
	}
	c.probe(p)
	return true
}

// doubt notes when p, who is not proven, was heard first, and asks it.
func (c *Core) doubt(p *peer) {
	if c.proven(p) {
		p.doubtEar, p.ghost = -1, false
		return
	}
	if p.doubtEar < 0 {
		p.doubtEar = c.ear()
	}
	c.probe(p)
}

func (c *Core) probe(p *peer) {
	if c.now-p.probed >= c.cfg.Interval/2 {
		p.probed = c.now
		c.send(p.id, &Probe{c.head(), p.id})
	}
}

// ghost reports whether nothing but recordings is heard of p. It is known once
// and for all, until p proves itself.
func (c *Core) ghost(p *peer) bool {
	p.ghost = p.ghost || c.unanswering(p) && c.confirmedSender(p)
	return p.ghost
}

// unanswering reports whether p has had the time to prove itself, and did not.
func (c *Core) unanswering(p *peer) bool {
	return !c.proven(p) && !p.ancient && p.doubtEar >= 0 && c.ear()-p.doubtEar > c.maxLw
}

// haunted reports whether somebody is heard who may be a ghost or out of reach.
func (c *Core) haunted() bool {
	for _, p := range c.peers {
		if p.heard && c.unanswering(p) && !c.ghost(p) {
			return true
		}
	}
	return false
}

// probeAll asks at each tick who has not proved itself. A node that says
// nothing yet asks all: nobody else could confirm its sending.
func (c *Core) probeAll() {
	c.proofs = 0
	for _, p := range c.peers {
		recent := p.heard || p.foreign && c.now-p.lastRx < foreignFor
		if recent && (c.spoke == 0 || !c.proven(p)) {
			c.probe(p)
		}
	}
}

// prove answers a Probe.
func (c *Core) prove(m *Probe) {
	if m.To == c.id && m.Inc != c.cfg.Incarnation && c.proofs < maxPeers {
		c.proofs++
		c.send(m.From, &Proof{c.head(), m.From, m.Inc})
	}
}

// proofFrom acts on the answer to a Probe.
func (c *Core) proofFrom(m *Proof) {
	if p := c.peer(m.From); p != nil && m.To == c.id && m.ToInc == c.cfg.Incarnation {
		c.proves(p, m.Inc)
	}
}

// A namesake is another machine that uses this node's name.
type namesake struct {
	inc    uint64 // of its newest heartbeat
	alive  uint64 // that has proved itself
	first  time.Duration
	probed time.Duration
}

// namesakeLives reports whether inc, which uses this node's name, has proved
// itself; if it has not, it is asked to.
func (c *Core) namesakeLives(inc uint64) bool {
	k := &c.namesake
	if k.alive == inc || c.cfg.mutant&believesRecordings != 0 {
		return true
	}
	if k.inc == 0 {
		k.first = c.ear()
	}
	k.inc = inc
	if c.now-k.probed >= c.cfg.Interval/2 {
		k.probed = c.now
		c.send(c.id, &Probe{c.head(), c.id})
	}
	return false
}

// namesakeIsGhost reports whether only recordings of another machine with this
// node's name are heard.
func (c *Core) namesakeIsGhost() bool {
	return c.namesake.inc != 0 && c.ear()-c.namesake.first > c.maxLw && c.confirmedSender(nil)
}
