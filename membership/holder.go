package membership

import (
	"saru/partition"
)

// setOpen sets what the kernel may have open.
func (c *Core) setOpen(s partition.Set) {
	if c.open.Empty() {
		c.heldSince = c.now
	}
	c.open = s
}

// fence closes everything and joins anew (H7).
func (c *Core) fence() {
	c.stats.Fences++
	c.joinSince = c.now
	c.minConfirm = c.n + 1
	if c.open.Empty() && !c.applying {
		c.state = Joining
		return
	}
	c.state = Fenced
	c.closeAll = true
}

// deaf reports whether p, who is heard, has not heard us for some time.
func (c *Core) deaf(p *peer) bool {
	return c.now-max(p.echoAt, p.since) > c.deafAfter()
}

// confirmedSender reports whether somebody other than p hears us, so that p's
// not hearing us is p's failure and not ours.
func (c *Core) confirmedSender(p *peer) bool {
	if c.pingAt > 0 && c.now-c.pingAt < c.cfg.Lease {
		return true
	}
	for _, q := range c.peers {
		if q != p && q.heard && c.now-q.echoAt <= c.deafAfter() {
			return true
		}
	}
	return false
}

// hearsNobody reports whether p is deaf altogether: whatever it concludes, the
// clients' frames take the way of the heartbeats that it does not hear.
func (c *Core) hearsNobody(p *peer) bool {
	return c.deaf(p) && c.confirmedSender(p) && len(p.hb.Heard) == 0
}

// suspected reports whether p is taken for dead as far as keeping goes. Who
// did not hear us when it was last heard is not dead but perhaps taking over.
func (c *Core) suspected(p *peer) bool {
	return p.missed >= suspectAfter && p.lastRx-p.echoAt <= c.deafAfter()
}

// guard closes what must not stay open (H4, H6, H7).
func (c *Core) guard() {
	if c.open.Empty() {
		return
	}
	held := c.now - max(c.confirmAt, c.heldSince)
	lease := c.cfg.Lease
	if c.confirmed != 0 && held > lease-lease/100-lateness && c.state != Fenced {
		c.fence()
		return
	}
	if held > c.holdFor() {
		c.giveUp(c.open)
	}
	for _, p := range c.peers {
		if p.heard && c.deaf(p) && !c.confirmedSender(p) {
			if c.giveUp(c.open) {
				c.stats.Mutes++
			}
			return
		}
	}
}

// giveUp closes s, and lets nothing be confirmed that was armed before (H4).
func (c *Core) giveUp(s partition.Set) bool {
	if c.closeReq.Contains(s) {
		return false
	}
	c.closeReq = c.closeReq.Union(s)
	c.minConfirm = c.n + 1
	return true
}

// granted judges the answers to one sent heartbeat (H6): whether what was open
// may be kept, which of it was refused, and which wanted buckets everybody
// granted.
func (c *Core) granted(s *sentHB) (kept bool, refused, gained partition.Set) {
	kept, gained = true, s.want
	for i := range s.acks {
		if p := c.peers[s.acks[i].from]; c.cfg.mutant&ineligibleIsFree != 0 && p != nil && p.heard && p.hb.State != Ready {
			continue
		}
		refused = refused.Union(s.acks[i].refused)
		yes := s.acks[i].granted
		if c.cfg.mutant&refusedIsAbsent != 0 {
			yes = yes.Union(s.acks[i].refused)
		}
		gained = gained.Intersect(yes)
	}
	for _, p := range c.peers {
		if !p.heard || p.hb.State != Ready && c.cfg.mutant&ineligibleIsFree != 0 {
			continue
		}
		deaf := c.deaf(p) && c.confirmedSender(p)
		if !s.answered(p.id) {
			if !deaf && !c.suspected(p) {
				kept = false
			}
			if !c.hearsNobody(p) {
				gained = partition.Set{}
			}
		}
		for _, e := range p.hb.Heard {
			if e.Node != c.id && !s.answered(e.Node) && !c.hasLeft(e) {
				gained = partition.Set{}
			}
		}
	}
	if c.foreign() {
		gained = partition.Set{}
	}
	if c.cfg.mutant&refusedIsAbsent != 0 {
		refused = partition.Set{}
	}
	return kept, refused, gained
}

func (c *Core) hasLeft(e Echo) bool {
	p := c.peers[e.Node]
	return p != nil && p.left && p.inc == e.Inc
}

func (s *sentHB) answered(id NodeID) bool {
	for i := range s.acks {
		if s.acks[i].from == id {
			return true
		}
	}
	return false
}

// recent yields the sent heartbeats that can still be confirmed, newest first.
func (c *Core) recent(yield func(*sentHB) bool) {
	for n := c.n; n > 0 && n+ringSize > c.n; n-- {
		s := &c.sent[n%ringSize]
		if s.n != n || c.now-s.at >= c.cfg.Arm {
			return
		}
		if !yield(s) {
			return
		}
	}
}

// evaluate closes what a voter refused (H4).
func (c *Core) evaluate() {
	for s := range c.recent {
		_, refused, _ := c.granted(s)
		lost := refused.Intersect(s.open).Intersect(c.open).Minus(c.closeReq)
		for b := range lost.All() {
			if c.cleared[b] > s.n {
				lost.Remove(b) // given up for it, and granted again since
			}
		}
		if !lost.Empty() {
			c.stats.LostGrants += uint64(lost.Len())
			c.giveUp(lost)
		}
	}
}

// gains returns the buckets that may be opened now: granted by all for a
// heartbeat no older than the one that the lease hangs on, and never given up
// in a heartbeat since (VOID).
func (c *Core) gains() partition.Set {
	var all partition.Set
	if c.closeAll || c.leaving || c.unsure {
		return all
	}
	for s := range c.recent {
		if s.n < c.confirmed || s.n < c.minConfirm {
			break
		}
		_, _, g := c.granted(s)
		for b := range g.Minus(all).All() {
			void := c.cleared[b] > s.n && c.cfg.mutant&noVoid == 0
			if void || c.open.Has(b) || !c.mine.Has(b) {
				continue
			}
			if at := c.releasedAt[b] + c.cfg.Settle; c.now < at {
				c.wake = min(c.wake, at)
				continue
			}
			all.Add(b)
		}
	}
	return all
}

// steer asks for the open set that assignment, grants and guards lead to. One
// request is under way at a time; until it is read back, all that was or will
// be open counts as open (H4).
func (c *Core) steer() {
	if c.applying {
		return
	}
	desired := c.open.Intersect(c.keep()).Minus(c.closeReq)
	gained := c.gains()
	desired = desired.Union(gained)
	if c.closeAll {
		desired = partition.Set{}
	}
	if desired == c.sure && !c.unsure {
		c.closeReq = c.closeReq.Intersect(c.open)
		if c.closeAll && c.open.Empty() && c.state == Fenced {
			c.closeAll, c.state, c.joinSince = false, Joining, c.now
		}
		return
	}
	c.applying, c.asked = true, desired
	c.do(Action{Kind: Apply, Open: desired, Gained: gained})
	if c.cfg.mutant&releaseBeforeCommit != 0 {
		c.setOpen(desired)
		return
	}
	c.setOpen(c.open.Union(desired))
}

// keep returns the buckets that need not be released to follow the assignment.
func (c *Core) keep() partition.Set {
	if c.assign == nil {
		return c.open
	}
	return c.mine
}

// confirm renews the lease for the newest heartbeat that covers all that may
// be open (H3).
func (c *Core) confirm() {
	if c.open.Empty() || c.unsure || c.closeAll || c.leaving {
		return
	}
	for s := range c.recent {
		if s.n <= c.confirmed || s.n < c.minConfirm {
			return
		}
		kept, refused, gained := c.granted(s)
		if !kept || c.open.Minus(s.open.Minus(refused)).Minus(gained) != (partition.Set{}) {
			continue
		}
		c.confirmed, c.confirmAt = s.n, s.at
		c.stats.Confirms++
		c.do(Action{Kind: Confirm, N: s.n})
		return
	}
}

// wants returns the buckets to claim besides the open ones. Those that a heard
// peer has open, or that are promised to somebody, are asked for when they are
// free: a claim that comes first could otherwise take them from their holder.
func (c *Core) wants() partition.Set {
	if c.state != Ready && c.state != Draining || c.closeAll || c.leaving || c.unsure {
		return partition.Set{}
	}
	want := c.mine.Minus(c.open).Minus(c.closeReq)
	for _, p := range c.peers {
		if p.heard && !c.hearsNobody(p) && (p.hb.State == Ready || c.cfg.mutant&ineligibleIsFree == 0) {
			want = want.Minus(p.hb.Open)
		}
	}
	for b := range want.All() {
		if !c.freeFor(b, c.id, c.cfg.Incarnation) {
			want.Remove(b)
		}
	}
	return want
}

func (c *Core) compose() *Heartbeat {
	hb := &Heartbeat{
		Header: c.head(), N: c.n + 1, Lease: c.cfg.Lease, Shape: c.cfg.Shape, State: c.state,
		Weight: c.cfg.Weight, Words: c.words, Open: c.open, Rest: c.open, Name: c.cfg.Node,
	}
	hb.Epoch, hb.Hash = c.epoch()
	if c.leaving && c.open.Empty() && !c.applying && !c.unsure {
		hb.Flags, hb.State = FlagLeave, Left
	}
	hb.Want = c.wants()
	for _, p := range c.heardPeers() {
		hb.Heard = append(hb.Heard, Echo{p.id, p.inc, p.hb.N})
	}
	return hb
}

// changed reports whether the next heartbeat would say something new.
func (c *Core) changed() bool {
	if c.lastHB == nil {
		return true
	}
	a, b := c.compose(), c.lastHB
	if a.Open != b.Open || a.Want != b.Want || a.State != b.State || a.Flags != b.Flags || a.Epoch != b.Epoch || len(a.Heard) != len(b.Heard) {
		return true
	}
	for i := range a.Heard {
		if a.Heard[i].Node != b.Heard[i].Node || a.Heard[i].Inc != b.Heard[i].Inc {
			return true
		}
	}
	return false
}

// heartbeat arms and sends the next heartbeat (H2), and votes for its claims.
func (c *Core) heartbeat() {
	hb := c.compose()
	c.n = hb.N
	claims := hb.Claims()
	own := hb.Open
	if c.closeAll {
		// What is being closed may be others' by now: no new promise to this
		// node, so that their claims are not refused for it.
		c.free(c.id, c.cfg.Incarnation, claims)
	} else {
		own = c.promise(c.id, c.cfg.Incarnation, c.cfg.Lease, claims)
	}
	if lost := hb.Open.Minus(own); !lost.Empty() && !c.silent() {
		c.stats.LostGrants += uint64(lost.Len())
		c.giveUp(lost)
	}
	hb.Want = hb.Want.Intersect(own)
	if c.silent() {
		hb.Want = partition.Set{}
	}
	claims = hb.Claims()
	for b := range c.cfg.Buckets {
		if !claims.Has(b) {
			c.cleared[b] = hb.N
		}
	}
	s := &c.sent[hb.N%ringSize]
	*s = sentHB{n: hb.N, at: c.now, open: hb.Open, want: hb.Want, acks: s.acks[:0]}
	c.lastHB = hb
	if hb.Flags&FlagLeave != 0 {
		c.farewells++
	}
	c.do(Action{Kind: Arm, N: hb.N})
	c.send(0, hb)
	if len(hb.Heard) == 0 {
		c.step()
	}
}

// ackFrom acts on a voter's answer (H3).
func (c *Core) ackFrom(a *Ack) {
	if a.To != c.id || a.ToInc != c.cfg.Incarnation {
		return
	}
	s := &c.sent[a.N%ringSize]
	if s.n != a.N || a.N == 0 || s.answered(a.From) || len(s.acks) >= maxPeers {
		c.stats.StaleAcks++
		return
	}
	c.stats.Acks++
	s.acks = append(s.acks, vote{a.From, a.Granted, a.Refused})
	if p := c.peers[a.From]; p != nil {
		c.wantEpoch(p, a.Epoch)
	}
}
