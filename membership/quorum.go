package membership

import "saru/partition"

// A verdict is what the answers to one sent heartbeat allow.
type verdict struct {
	heard   bool          // by all who must hear it
	keep    partition.Set // of what was open: may stay so
	gain    partition.Set // of what was wanted: may be opened
	refused partition.Set // can not be had
}

// granted judges the answers to one sent heartbeat.
func (c *Core) granted(s *sentHB) verdict {
	var v verdict
	if c.majority() {
		v = c.grantedByMajority(s)
	} else {
		v = c.grantedByAll(s)
	}
	if c.blocked() {
		v.gain = partition.Set{}
	}
	if c.cfg.mutant&refusedIsAbsent != 0 {
		v.refused = partition.Set{}
	}
	return v
}

// grantedByMajority judges by H5: the grants of a majority of the voters, of
// which this node may be one.
func (c *Core) grantedByMajority(s *sentHB) verdict {
	var yes, no tally
	count, need := 0, c.quorum()
	if s.own && c.votes(c.id) {
		count++
		yes.add(s.open.Union(s.want), need)
	}
	for i := range s.acks {
		a := &s.acks[i]
		if !c.votes(a.from) {
			continue
		}
		count++
		granted := a.granted
		if c.cfg.mutant&refusedIsAbsent != 0 {
			granted = granted.Union(a.refused)
		}
		yes.add(granted, need)
		if s.refused {
			no.add(a.refused, need)
		}
	}
	by := yes.atLeast(need)
	return verdict{
		heard: count >= need, keep: s.open.Intersect(by), gain: s.want.Intersect(by),
		refused: no.atLeast(len(c.cfg.Voters) - need + 1),
	}
}

// A tally counts, for each bucket, the sets that have it.
type tally struct {
	n    int
	sets [MaxNodes/2 + 1]partition.Set // with the buckets in more than so many
}

// add counts one set more; nobody will ask for more than most.
func (t *tally) add(s partition.Set, most int) {
	t.n++
	for i := min(t.n, most) - 1; i > 0; i-- {
		t.sets[i] = t.sets[i].Union(t.sets[i-1].Intersect(s))
	}
	t.sets[0] = t.sets[0].Union(s)
}

func (t *tally) atLeast(n int) partition.Set { return t.sets[n-1] }

// grantedByAll judges by H6: to keep, every peer that is heard and not
// suspected has answered; to gain, every peer and everyone they list.
func (c *Core) grantedByAll(s *sentHB) verdict {
	v := verdict{heard: true, keep: s.open, gain: s.want}
	for i := range s.acks {
		a := &s.acks[i]
		if p := c.peer(a.from); p != nil && (p.has(FlagWitness) || c.cfg.mutant&ineligibleIsFree != 0 && p.heard && p.hb.State != Ready) {
			continue
		}
		v.refused = v.refused.Union(a.refused)
		yes := a.granted
		if c.cfg.mutant&refusedIsAbsent != 0 {
			yes = yes.Union(a.refused)
		}
		v.gain = v.gain.Intersect(yes)
	}
	for _, p := range c.peers {
		if !p.director() || p.hb.State != Ready && c.cfg.mutant&ineligibleIsFree != 0 {
			continue
		}
		ghost := c.ghost(p)
		if !s.answered(p.id) {
			if !(c.deaf(p) && c.confirmedSender(p)) && !c.suspected(p) && c.proven(p) {
				v.heard = false
			}
			if !c.hearsNobody(p) && !ghost {
				v.gain = partition.Set{}
			}
		}
		for _, e := range p.hb.Heard {
			if e.Node != c.id && !ghost && !s.answered(e.Node) && !c.needless(e) {
				v.gain = partition.Set{}
			}
		}
	}
	v.refused = v.refused.Minus(c.won)
	if !v.heard {
		v.keep = partition.Set{}
	}
	v.keep = v.keep.Minus(v.refused)
	return v
}

// needless reports whether the vote of somebody whom a peer hears is not
// needed under lan: it has left, or it is a witness.
func (c *Core) needless(e Echo) bool {
	p := c.peer(e.Node)
	return p != nil && p.known && p.inc == e.Inc && (p.left || p.has(FlagWitness))
}

func (s *sentHB) answered(id NodeID) bool {
	for i := range s.acks {
		if s.acks[i].from == id {
			return true
		}
	}
	return false
}

// settleConflicts decides about buckets that this node and another have open
// at once, as after a split of the LAN has healed: between two that hear each
// other more members, then seniority, then the name keeps, and the loser
// closes. What is kept is refused for a while by those who promised it to the
// loser; that is no loss.
func (c *Core) settleConflicts() {
	if c.now > c.wonUntil {
		c.won = partition.Set{}
	}
	if c.majority() || c.open.Empty() || c.closeAll {
		return
	}
	var won, lost partition.Set
	for _, p := range c.peers {
		if !p.director() || !c.mutual(p) {
			continue
		}
		both := c.open.Intersect(p.hb.Open)
		if both.Empty() {
			continue
		}
		w := c.winning(p, both)
		won, lost = won.Union(w), lost.Union(both.Minus(w))
		if c.conflictAt == 0 {
			c.note(Event{Kind: Conflicted, Node: p.hb.Name, Buckets: both})
		}
	}
	c.countConflict(won.Union(lost))
	won = won.Minus(lost)
	if !won.Empty() && c.now-c.confirmAt <= c.cfg.Lease/2 {
		c.won = c.won.Union(won)
		c.wonUntil = c.now + 2*c.cfg.Interval
	}
	c.won = c.won.Minus(lost)
	c.giveUp(lost, whySplit)
}

func (c *Core) countConflict(both partition.Set) {
	switch {
	case both.Empty() && c.conflictAt != 0:
		c.stats.ConflictMicros += uint64((c.now - c.conflictAt).Microseconds())
		c.conflictAt = 0
	case !both.Empty() && c.conflictAt == 0:
		c.stats.Conflicts += uint64(both.Len())
		c.conflictAt = c.now
	}
}

// winning returns which of the buckets that p and we have open we keep. Both
// sides judge by the same facts: what each says in its newest heartbeat.
func (c *Core) winning(p *peer, both partition.Set) partition.Set {
	if p.hb.State == Fenced || c.cfg.mutant&bothKeep != 0 {
		return both
	}
	var win, lose partition.Set
	if own, hash := c.epoch(); own == p.hb.Epoch && hash == p.hb.Hash && c.assign != nil {
		win, lose = both.Intersect(c.mine), both.Intersect(c.assign.Owned(p.id, p.inc))
	}
	if c.outranks(p) {
		return both.Minus(lose)
	}
	return win
}

func (c *Core) outranks(p *peer) bool {
	seats := 0
	if c.assign != nil {
		seats = len(c.assign.Seats)
	}
	if s := int(p.hb.Seats); seats != s {
		return seats > s
	}
	if d := c.since.Compare(p.hb.Since); d != 0 {
		return d < 0
	}
	return c.cfg.Node < p.hb.Name
}
