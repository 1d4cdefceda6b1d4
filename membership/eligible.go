package membership

import "time"

// How long a condition must last before it changes what a node says of itself.
const (
	impairedRises = time.Second
	impairedFalls = 10 * time.Second
)

// A latch follows a condition that has lasted for some time.
type latch struct {
	on    bool
	since time.Duration // since when the condition has differed
}

func (l *latch) update(now time.Duration, want bool, rises, falls time.Duration) {
	after := falls
	if want {
		after = rises
	}
	switch {
	case want == l.on:
		l.since = now
	case now-l.since >= after:
		l.on, l.since = want, now
	}
}

// judgeSelf judges at each tick whether this node is fit for a share.
func (c *Core) judgeSelf() {
	if c.cfg.Witness {
		return
	}
	c.degraded.update(c.now, c.degrade, c.cfg.Hysteresis, c.cfg.Hysteresis)
	c.impaired.update(c.now, c.outreached(), impairedRises, impairedFalls)
	if c.noFrames = c.framesLost(); c.noFrames {
		if c.state == Ready || c.state == Draining {
			c.stats.FramesLost++
			c.fence(whyFrames)
		}
		c.joinEar = c.ear()
	}
}

// outreached reports whether another director reaches more ping nodes.
func (c *Core) outreached() bool {
	for _, p := range c.peers {
		if p.director() && p.hb.State == Ready && c.mutual(p) && p.hb.Reach > c.reach {
			return true
		}
	}
	return false
}

// framesLost reports whether this node hears no frames to the shared MAC while
// another hears them: then the clients' packets do not come here either.
func (c *Core) framesLost() bool {
	if !c.cfg.Frames || c.now-max(c.frameAt, c.streak) <= c.maxLw {
		return false
	}
	for _, p := range c.peers {
		if p.director() && p.has(FlagFrames) && c.mutual(p) {
			return true
		}
	}
	return false
}

// settleState passes the gate when it may be passed (H7, state gate).
func (c *Core) settleState() {
	if c.state != Joining || c.leaving || c.linkDown || c.closeAll || c.unsure || c.applying || c.holds() {
		return
	}
	if c.ear()-c.joinEar <= c.maxLw || c.spoke == 0 || c.now-c.spoke <= 3*c.cfg.Interval || c.framesLost() {
		return
	}
	if !c.cfg.Witness && (c.strange() || !c.gateFull && (!c.gateCold || c.served())) {
		return
	}
	if c.heldOut() {
		return
	}
	c.state, c.readyAt = Ready, c.now
	if c.drain {
		c.state = Draining
	}
}
