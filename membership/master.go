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
	p := c.peers[f.From]
	if p == nil || c.assign == nil || c.now-p.answered < c.cfg.Interval/4 {
		return
	}
	p.answered = c.now
	c.tell(p.id)
}

func (c *Core) tell(to NodeID) {
	a := *c.assign
	a.Header = c.head()
	c.send(to, &a)
}

// adopt takes over a higher assignment. Giving up comes before gaining: what
// is not ours any more is closed, and said, before what is new is claimed.
func (c *Core) adopt(a *Assignment) {
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
	c.assign = a
	c.mine = a.Owned(c.id, c.cfg.Incarnation)
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
}

var unlisted = Epoch{Term: 1<<32 - 1, Counter: 1<<32 - 1}

// candidates returns the eligible directors, most senior first (M1).
func (c *Core) candidates() []candidate {
	var cs []candidate
	if c.state == Ready && !c.leaving {
		cs = append(cs, candidate{c.seat(c.id, c.cfg.Incarnation, c.cfg.Weight), c.cfg.Node})
	}
	for _, p := range c.peers {
		if p.heard && p.hb.State == Ready && !c.deaf(p) {
			cs = append(cs, candidate{c.seat(p.id, p.inc, p.hb.Weight), p.hb.Name})
		}
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.name, b.name))
	})
	return cs
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
	if c.state != Ready || c.leaving {
		return
	}
	own, _ := c.epoch()
	for _, p := range c.peers {
		if !p.heard || p.hb.Epoch.Compare(own) <= 0 {
			continue
		}
		if !c.hearsNobody(p) {
			return
		}
		own = p.hb.Epoch // it cannot be asked; go above it
	}
	cs := c.candidates()
	if len(cs) == 0 || cs[0].Node != c.id {
		return
	}
	mine := c.assign != nil && c.assign.Epoch.Issuer == c.cfg.Incarnation && c.assign.Epoch == own
	if mine && c.sameSeats(cs) {
		return
	}
	next := Epoch{own.Term, own.Counter + 1, c.cfg.Incarnation}
	if !mine {
		next = Epoch{own.Term + 1, 1, c.cfg.Incarnation}
	}
	c.issue(next, cs)
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

func (c *Core) issue(e Epoch, cs []candidate) {
	a := &Assignment{Header: c.head(), Epoch: e, Shape: c.cfg.Shape, Owner: make([]uint8, c.cfg.Buckets)}
	var prev []string
	if c.assign != nil {
		for _, i := range c.assign.Owner {
			prev = append(prev, c.assign.Seats[i].Node.String())
		}
	}
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
	a.Hash = a.contentHash()
	c.stats.AssignmentsMade++
	c.adopt(a)
	c.tell(0)
}
