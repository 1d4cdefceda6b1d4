package membership

import (
	"time"

	"saru/partition"
)

// setHeld sets what the kernel may have open, and what it has in rest.
func (c *Core) setHeld(open, rest partition.Set) {
	if c.open.Empty() && c.rest.Empty() {
		c.heldSince = c.now
	}
	c.open, c.rest = open, rest
}

// holds reports whether a lease is of use.
func (c *Core) holds() bool { return !c.open.Empty() || !c.rest.Empty() }

// Why buckets were closed.
const (
	whyLate     = "this daemon was stopped, or its machine too busy, for longer than a lease"
	whySlept    = "this machine was suspended"
	whyClone    = "another machine uses this node's name"
	whyLost     = "somebody else changed the kernel's table"
	whyAsked    = "asked to"
	whyLink     = "no carrier on the share's interface"
	whyFrames   = "the frames that others hear do not come here"
	whyLapsed   = "the lease lapsed"
	whyUnheard  = "no lease for half its time: others do not answer"
	whyMute     = "no lease for half its time: others do not hear this node"
	whyRefused  = "a voter refused it"
	whyPromised = "promised to another"
	whySplit    = "another keeps it after a split"
	whyTaken    = "handed over"
	whyLeaving  = "leaving"
)

// fence closes everything and joins anew (H7).
func (c *Core) fence(why string) {
	c.stats.Fences++
	c.fenced()
	c.fenceWhy, c.closeWhy = why, why
	c.joinEar = c.ear()
	c.minConfirm = c.n + 1
	c.taking, c.lingering = partition.Set{}, partition.Set{}
	if !c.holds() && !c.applying && !c.unsure {
		c.state = Joining
		c.stepAside()
		return
	}
	c.state = Fenced
	c.closeAll = true
}

// guard closes what must not stay open (H4, H6, H7).
func (c *Core) guard() {
	if !c.holds() {
		return
	}
	held := c.now - max(c.confirmAt, c.heldSince)
	lease := c.cfg.Lease
	if c.confirmed != 0 && held > lease-lease/100-lateness && c.state != Fenced {
		c.fence(whyLapsed)
		return
	}
	if held <= c.holdFor() {
		if c.state != Fenced {
			c.later(max(c.confirmAt, c.heldSince) + c.holdFor() + time.Microsecond)
		}
		return
	}
	c.taking, c.lingering = partition.Set{}, partition.Set{}
	if c.giveUp(c.open, whyUnheard) && !c.majority() {
		for _, p := range c.peers {
			if p.director() && c.deaf(p) && !c.confirmedSender(p) {
				c.stats.Mutes++
				c.closeWhy = whyMute
				break
			}
		}
	}
}

// giveUp closes s, and lets nothing be confirmed that was armed before (H4).
func (c *Core) giveUp(s partition.Set, why string) bool {
	c.lingering = c.lingering.Minus(s)
	c.taking = c.taking.Minus(s)
	if c.closeReq.Contains(s) {
		return false
	}
	c.closeReq = c.closeReq.Union(s)
	c.closeWhy = why
	c.minConfirm = c.n + 1
	return true
}

// lapsed reports whether nothing that may be open can still be accepted: the
// lease has surely ended, and cannot be renewed before all is known closed.
func (c *Core) lapsed() bool {
	return c.closeAll && c.now-max(c.confirmAt, c.heldSince) > Watch(c.cfg.Lease)
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

// ripe reports whether the answers to s may be judged now. An answer came after
// s was sent; that nobody need answer must be known as of then, too: not from
// what was heard before a stall that came between deciding on s and sending it.
func (c *Core) ripe(s *sentHB) bool {
	if c.drained || len(s.acks) > 0 {
		return true
	}
	c.later(c.now)
	return false
}

// evaluate closes what a voter refused (H4).
func (c *Core) evaluate() {
	if c.open.Empty() {
		return
	}
	for s := range c.recent {
		if !s.refused {
			continue
		}
		v := c.granted(s)
		lost := v.refused.Intersect(s.open).Intersect(c.open).Minus(c.closeReq)
		for b := range lost.All() {
			if c.cleared[b] > s.n {
				lost.Remove(b) // given up for it, and granted again since
			}
		}
		if !lost.Empty() {
			c.stats.LostGrants += uint64(lost.Len())
			c.giveUp(lost, whyRefused)
		}
	}
}

// gains returns the buckets that may be opened now: granted by all for a
// heartbeat no older than the one that the lease hangs on, and never given up
// in a heartbeat since (VOID).
func (c *Core) gains() partition.Set {
	var all partition.Set
	if c.closeAll || c.unsure {
		return all
	}
	for s := range c.recent {
		if s.n < c.confirmed || s.n < c.minConfirm {
			break
		}
		if s.want.Empty() || !c.ripe(s) {
			continue
		}
		v := c.granted(s)
		for b := range v.gain.Minus(all).All() {
			void := c.cleared[b] > s.n && c.cfg.mutant&noVoid == 0
			if void || c.open.Has(b) || !c.mine.Has(b) && !c.taking.Has(b) {
				continue
			}
			if at := c.releasedAt[b] + c.cfg.Settle; c.now < at && c.cfg.mutant&noSettle == 0 {
				c.later(at)
				continue
			}
			all.Add(b)
		}
	}
	return all
}

// steer asks for the sets that assignment, grants, guards and hand-over lead
// to. One request is under way at a time; until it is read back, all that was
// or will be open counts as open (H4).
func (c *Core) steer() {
	if c.applying {
		return
	}
	release := c.releases().Intersect(c.open).Minus(c.closeReq)
	gained := c.gains()
	open := c.open.Minus(release).Minus(c.closeReq).Union(gained)
	for b := range release.All() {
		c.lingerAt[b] = c.now
		c.stats.Handovers++
		c.closeWhy = whyTaken
	}
	if c.cfg.mutant&noLinger == 0 {
		c.lingering = c.lingering.Union(release)
	}
	rest := open.Union(c.lingering).Union(c.taking)
	if c.closeAll {
		open, rest = partition.Set{}, partition.Set{}
	}
	if open == c.sure && rest == c.rest && !c.unsure {
		c.closeReq = c.closeReq.Intersect(c.open)
		c.closed()
		return
	}
	c.applying, c.asked, c.askedRest = true, open, rest
	c.do(Action{Kind: Apply, Open: open, Rest: rest, Gained: gained})
	if c.cfg.mutant&releaseBeforeCommit != 0 {
		c.setHeld(open, c.rest)
		return
	}
	c.setHeld(c.open.Union(open), c.rest)
}

// confirm renews the lease for the newest heartbeat that covers all that may
// be open (H3).
func (c *Core) confirm() {
	if !c.holds() || c.unsure || c.closeAll {
		return
	}
	for s := range c.recent {
		if s.n <= c.confirmed || s.n < c.minConfirm {
			return
		}
		if !c.ripe(s) {
			continue
		}
		v := c.granted(s)
		if !v.heard || !v.keep.Union(v.gain).Contains(c.open) {
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
	if c.state != Ready && c.state != Draining || c.closeAll || c.unsure {
		return partition.Set{}
	}
	want := c.mine.Union(c.taking).Minus(c.open).Minus(c.closeReq)
	if want.Empty() {
		return want
	}
	for _, p := range c.peers {
		if p.heard && !c.hearsNobody(p) && !c.ghost(p) && (p.hb.State == Ready || c.cfg.mutant&ineligibleIsFree == 0) {
			want = want.Minus(p.hb.Open)
			// Nor what another is about to take with its connections.
			if soon := p.hb.Want.Intersect(p.hb.Rest); !soon.Empty() {
				if p.id > c.id {
					soon = soon.Minus(c.rest.Minus(c.outdated()))
				}
				want = want.Minus(soon)
			}
		}
	}
	for b := range want.All() {
		if !c.freeFor(b, c.id, c.cfg.Incarnation) {
			want.Remove(b)
		}
	}
	return want
}

// compose writes what the next heartbeat says into hb.
func (c *Core) compose(hb *Heartbeat) {
	heard := hb.Heard[:0]
	*hb = Heartbeat{
		Header: c.head(), N: c.n + 1, Lease: c.cfg.Lease, Shape: c.cfg.Shape, Host: c.cfg.Host, State: c.state, Flags: c.flags(),
		Since: Epoch{Term: c.since.Term, Counter: c.since.Counter}, Weight: c.cfg.Weight, Reach: c.reach, Freeze: c.freeze,
		Words: c.words, Open: c.open, Want: c.wants(), Rest: c.rest, Name: c.cfg.Node, Voters: c.cfg.Voters,
	}
	hb.Epoch, hb.Hash = c.epoch()
	if c.assign != nil {
		hb.Seats = uint8(len(c.assign.Seats))
	}
	if c.lapsed() {
		hb.Open = partition.Set{}
	}
	hb.Rest = hb.Rest.Minus(c.outdated())
	switch {
	case c.unsure:
		hb.Rest = partition.Set{} // a promise to serve, so only what is sure
	case c.applying:
		hb.Rest = hb.Rest.Intersect(c.askedRest)
	}
	if hb.Flags&FlagLeave != 0 {
		hb.State = Left
	}
	for _, p := range c.peers {
		if p.heard && c.proven(p) && len(heard) < MaxNodes-1 {
			heard = append(heard, Echo{p.id, p.inc, p.hb.N})
		}
	}
	hb.Heard = heard
	hb.fit()
}

func (c *Core) flags() uint16 {
	var f uint16
	set := func(on bool, flag uint16) {
		if on {
			f |= flag
		}
	}
	set(c.leaving, FlagGoing)
	set(c.leaving && c.closeAll && !c.holds() && !c.applying && !c.unsure, FlagLeave)
	set(c.cfg.Witness, FlagWitness)
	set(c.aside > 0, FlagAside)
	set(c.degraded.on, FlagDegraded)
	set(c.impaired.on, FlagIneligible)
	set(c.cfg.Frames && c.now-c.frameAt <= 3*c.cfg.Interval && c.frameAt > c.started, FlagFrames)
	return f
}

// changed reports whether the next heartbeat would say something new.
func (c *Core) changed() bool {
	a, b := &c.draft, &c.last
	if b.N == 0 {
		return true
	}
	c.compose(a)
	const urgent = FlagLeave | FlagAside | FlagGoing | FlagDegraded | FlagIneligible
	if a.Open != b.Open || a.Want != b.Want || a.Rest != b.Rest || a.State != b.State || (a.Flags^b.Flags)&urgent != 0 ||
		a.Epoch != b.Epoch || a.Freeze != b.Freeze || len(a.Heard) != len(b.Heard) {
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
	hb := &c.hbs[(c.n+1)%scratch]
	c.compose(hb)
	c.n, c.retryAt = hb.N, 0
	own := hb.Open
	if c.closeAll {
		// What is being closed may be others' by now: no new promise to this
		// node, so that their claims are not refused for it.
		c.free(c.id, c.cfg.Incarnation, c.cfg.Host, hb.Claims())
	} else if !c.cfg.Witness {
		own = c.promise(hb, hb.Claims())
	}
	if lost := hb.Open.Minus(own); !lost.Empty() && !c.silent() {
		c.stats.LostGrants += uint64(lost.Len())
		c.giveUp(lost, whyPromised)
	}
	hb.Want = hb.Want.Intersect(own)
	if c.silent() && !c.majority() {
		hb.Want = partition.Set{}
	}
	for b := range c.cfg.Buckets {
		if !hb.Open.Has(b) && !hb.Want.Has(b) {
			c.cleared[b] = hb.N
		}
	}
	s := &c.sent[hb.N%ringSize]
	*s = sentHB{n: hb.N, at: c.now, ear: c.ear(), own: !c.silent() && !c.closeAll, open: hb.Open, want: hb.Want, acks: s.acks[:0]}
	heard := append(c.last.Heard[:0], hb.Heard...)
	c.last = *hb
	c.last.Heard = heard
	if hb.Flags&FlagLeave != 0 {
		c.farewells++
	}
	if !c.speaks() {
		return
	}
	c.hush()
	c.do(Action{Kind: Arm, N: hb.N})
	c.send(0, hb)
	if v := c.granted(s); v.heard && (c.holds() || !s.want.Empty()) {
		c.later(c.now) // nobody need answer
	}
}

// speaks reports whether heartbeats are sent. A newcomer says nothing while it
// has no vote yet, or has not proved that it can answer in time, and somebody
// serves: whoever hears it would have to wait for its vote, and a move under
// way would leave a gap. Nor does it say anything in the name of another.
func (c *Core) speaks() bool {
	if c.cloned() && c.state == Joining {
		return false
	}
	if c.spoke == 0 {
		if c.now-c.started <= 2*c.cfg.Interval || c.silent() && c.served() || c.heldOut() && !c.majority() && !c.cfg.Witness {
			return false
		}
		c.spoke = c.now
	}
	return true
}

// ackFrom acts on a voter's answer (H3), and reports whether it was news.
func (c *Core) ackFrom(a *Ack) bool {
	if a.To != c.id || a.ToInc != c.cfg.Incarnation {
		return false
	}
	s := &c.sent[a.N%ringSize]
	if s.n != a.N || a.N == 0 || s.answered(a.From) || len(s.acks) >= maxPeers {
		c.stats.StaleAcks++
		return false
	}
	c.stats.Acks++
	if p := c.peer(a.From); p != nil {
		c.proves(p, a.Inc)
	}
	s.acks = append(s.acks, vote{a.From, a.Granted, a.Refused})
	s.refused = s.refused || !a.Refused.Empty()
	if again := a.Refused.Intersect(c.last.Want); !again.Empty() && c.retryAt == 0 {
		// The claim has overtaken the release on the way to this voter.
		c.retryAt = c.now + c.cfg.Settle/2
	}
	if p := c.peer(a.From); p != nil {
		c.wantEpoch(p, a.Epoch)
	}
	return true
}
