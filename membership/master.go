package membership

import (
	"cmp"
	"slices"

	"saru/partition"
)

func (c *Core) epoch() (Epoch, uint64) {
	if c.assign == nil {
		return Epoch{}, 0
	}
	return c.assign.Epoch, c.assign.Hash
}

// wantEpoch asks p for the assignment of an epoch above ours (M3).
func (c *Core) wantEpoch(p *peer, e Epoch) {
	own, _ := c.epoch()
	if e.Compare(own) <= 0 || c.now-p.fetched < c.cfg.Interval/2 {
		return
	}
	p.fetched = c.now
	c.send(p.id, &Fetch{c.head(), e})
}

func (c *Core) fetchFrom(f *Fetch) {
	p := c.peer(f.From)
	if p == nil || c.assign == nil || c.now-p.answered < c.cfg.Interval/4 {
		return
	}
	p.answered = c.now
	c.tell(p.id)
}

// tell sends the assignment that is followed, in as many parts as it needs.
func (c *Core) tell(to NodeID) {
	for first := 0; first < c.assign.Buckets; first += partOwners {
		part := *c.assign
		part.Header, part.First = c.head(), first
		part.Owner = c.assign.Owner[first:min(first+partOwners, part.Buckets)]
		c.send(to, &part)
	}
}

// gather returns the assignment that a is, or completes as its last part; else
// nil. Of one assignment at a time, the highest, parts are kept.
func (c *Core) gather(a *Assignment) *Assignment {
	if a.whole() || a.Shape != c.cfg.Shape || a.Buckets != c.cfg.Buckets {
		return a
	}
	own, _ := c.epoch()
	g := c.parts
	switch {
	case a.Epoch.Compare(own) <= 0, g != nil && a.Epoch.Compare(g.Epoch) < 0:
		return nil
	case g == nil || g.Epoch != a.Epoch || g.Hash != a.Hash:
		whole := *a
		whole.First, whole.Owner = 0, make([]uint8, a.Buckets)
		g, c.parts, c.gathered = &whole, &whole, partition.Set{}
	}
	copy(g.Owner[a.First:], a.Owner)
	for i := range a.Owner {
		c.gathered.Add(a.First + i)
	}
	if c.gathered.Len() < g.Buckets {
		return nil
	}
	c.parts = nil
	return g
}

// adopt takes over a higher assignment. Giving up comes before gaining: what
// is not ours any more is closed, and said, before what is new is claimed.
func (c *Core) adopt(a *Assignment) {
	if a = c.gather(a); a == nil {
		return
	}
	own, hash := c.epoch()
	switch d := a.Epoch.Compare(own); {
	case a.Shape != c.cfg.Shape || len(a.Owner) != c.cfg.Buckets || a.Hash != a.contentHash():
		c.stats.BadAssignments++
		return
	case d == 0 && a.Hash != hash:
		c.stats.EpochConflicts++
		return
	case d <= 0:
		return
	}
	before := c.assign
	c.assign, c.adopted = a, c.now
	c.mine = a.Owned(c.id, c.cfg.Incarnation)
	c.since = c.seat(c.id, c.cfg.Incarnation, c.cfg.Weight).Since
	c.observeMoves(before)
	c.give()
}

// Owned returns the buckets that a gives to one incarnation of a node.
func (a *Assignment) Owned(id NodeID, inc uint64) partition.Set {
	var s partition.Set
	for b, i := range a.Owner {
		if seat := &a.Seats[i]; seat.Node == id && seat.Inc == inc {
			s.Add(b)
		}
	}
	return s
}

// A candidate is a director that may get a share.
type candidate struct {
	Seat
	name string
	rank rank
	open bool // it has buckets open
}

// A rank says how fit a director is. The best that there are get the share, so
// that none is ever the last and yet without.
type rank uint8

const (
	healthy rank = iota
	degraded
	impaired
	drained
	unfit
)

func rankOf(s State, flags uint16) rank {
	switch {
	case flags&(FlagWitness|FlagGoing|FlagLeave) != 0, s != Ready && s != Draining:
		return unfit
	case s == Draining:
		return drained
	case flags&FlagIneligible != 0:
		return impaired
	case flags&FlagDegraded != 0:
		return degraded
	}
	return healthy
}

// unlisted is since when somebody is in no assignment: last in seniority.
var unlisted = Epoch{Term: 1<<32 - 1, Counter: 1<<32 - 1}

// fit returns all directors that could have a share, most senior first. The
// slice is valid until the next call.
func (c *Core) fit() []candidate {
	cs := c.cands[:0]
	if r := rankOf(c.state, c.flags()); r != unfit {
		cs = append(cs, candidate{c.seat(c.id, c.cfg.Incarnation, c.cfg.Weight), c.cfg.Node, r, !c.open.Empty()})
	}
	for _, p := range c.peers {
		if !p.heard || !c.proven(p) || c.lostUs(p) {
			continue
		}
		if r := rankOf(p.hb.State, p.hb.Flags); r != unfit {
			cs = append(cs, candidate{c.seat(p.id, p.inc, p.hb.Weight), p.hb.Name, r, !p.hb.Open.Empty()})
		}
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.name, b.name))
	})
	c.cands = cs[:0]
	return cs
}

// candidates returns the directors that shall have a share, most senior first
// (M1): the fittest that there are, and of the degraded those whose turn to
// give theirs away has not come (M4).
func (c *Core) candidates() []candidate {
	cs := c.fit()
	best := unfit
	moving := false
	for i := range cs {
		best = min(best, cs[i].rank)
		moving = moving || cs[i].rank == degraded && cs[i].Since == unlisted && cs[i].open
	}
	out := cs[:0]
	for _, s := range cs {
		if best == healthy && s.rank == degraded && s.Since != unlisted {
			if moving {
				out = append(out, s)
			}
			moving = true // one at a time
			continue
		}
		if s.rank == best {
			out = append(out, s)
		}
	}
	return out
}

// remaining returns the members of the assignment that are still there, with
// the weights that it gave them: whom planned moves do not touch.
func (c *Core) remaining() []candidate {
	cs := c.fit()
	out := cs[:0]
	for _, s := range cs {
		if s.Since == unlisted {
			continue
		}
		for i := range c.assign.Seats {
			if q := &c.assign.Seats[i]; q.Node == s.Node && q.Inc == s.Inc {
				s.Weight = q.Weight
			}
		}
		out = append(out, s)
	}
	return out
}

func (c *Core) seat(id NodeID, inc uint64, weight uint16) Seat {
	s := Seat{id, inc, unlisted, weight}
	if c.assign != nil {
		for i := range c.assign.Seats {
			if q := &c.assign.Seats[i]; q.Node == id && q.Inc == inc {
				s.Since = q.Since
			}
		}
	}
	return s
}

// Master returns the name of the master as this node sees it, or "".
func (c *Core) Master() string {
	if cs := c.candidates(); len(cs) > 0 {
		return cs[0].name
	}
	return ""
}

// lead does the master's work, if this node is it: it makes a new assignment
// when the eligible members or their weights changed, after it has seen the
// highest that those it hears have (M2).
func (c *Core) lead() {
	if c.state != Ready && c.state != Draining || c.leaving {
		return
	}
	own, _ := c.epoch()
	for _, p := range c.peers {
		if !p.director() || p.hb.Epoch.Compare(own) <= 0 {
			continue
		}
		if !c.hearsNobody(p) && !c.ghost(p) {
			return
		}
		own = p.hb.Epoch // it cannot be asked; go above it
	}
	if c.majority() && c.votersHeard() < c.quorum() {
		return // it could not have a bucket opened
	}
	cs := c.candidates()
	if len(cs) == 0 || cs[0].Node != c.id {
		return
	}
	mine := c.assign != nil && c.assign.Epoch.Issuer == c.cfg.Incarnation && c.assign.Epoch == own
	if c.Frozen() && c.assign != nil {
		if left := c.remaining(); len(left) > 0 {
			if len(left) == len(c.assign.Seats) {
				return
			}
			cs = left
		} else {
			cs = c.candidates()
		}
	}
	if mine && c.sameSeats(cs) {
		return
	}
	next := Epoch{own.Term, own.Counter + 1, c.cfg.Incarnation}
	if !mine {
		next = Epoch{own.Term + 1, 1, c.cfg.Incarnation}
	}
	if c.cfg.mutant&sameEpoch != 0 && mine {
		next = own
	}
	c.issue(next, cs, mine)
}

func (c *Core) sameSeats(cs []candidate) bool {
	if len(cs) != len(c.assign.Seats) {
		return false
	}
	for i := range cs {
		if cs[i].Seat != c.assign.Seats[i] {
			return false
		}
	}
	return true
}

// owners returns by whom each bucket is held: who the assignment says, or if
// it is another master's, who has it open, so that little moves after a split.
func (c *Core) owners(mine bool) []string {
	var prev []string
	if c.assign != nil {
		names := make([]string, len(c.assign.Seats))
		for i := range names {
			names[i] = c.assign.Seats[i].Node.String()
		}
		for _, i := range c.assign.Owner {
			prev = append(prev, names[i])
		}
	}
	if mine || len(prev) == 0 {
		return prev
	}
	for _, p := range c.peers {
		if p.director() {
			name := p.id.String()
			for b := range p.hb.Open.All() {
				prev[min(b, len(prev)-1)] = name
			}
		}
	}
	name := c.id.String()
	for b := range c.open.All() {
		prev[b] = name
	}
	return prev
}

func (c *Core) issue(e Epoch, cs []candidate, mine bool) {
	a := &Assignment{Header: c.head(), Epoch: e, Shape: c.cfg.Shape, Buckets: c.cfg.Buckets, Owner: make([]uint8, c.cfg.Buckets)}
	prev := c.owners(mine)
	members := make([]partition.Member, len(cs))
	index := map[string]uint8{}
	for i, s := range cs {
		if s.Since == unlisted {
			s.Since = Epoch{Term: e.Term, Counter: e.Counter}
		}
		a.Seats = append(a.Seats, s.Seat)
		members[i] = partition.Member{Name: s.Node.String(), Weight: int(s.Weight)}
		index[s.Node.String()] = uint8(i)
	}
	for b, owner := range partition.Assign(prev, members, c.cfg.Buckets) {
		a.Owner[b] = index[owner]
	}
	a.Gone = c.gone(c.assign, a.Seats)
	a.Hash = a.contentHash()
	c.stats.AssignmentsMade++
	if c.cfg.mutant&sameEpoch != 0 && c.assign != nil && c.assign.Epoch == e {
		c.assign = nil
	}
	c.adopt(a)
	c.tell(0)
}
