package membership

import "time"

// The listening clock. That nobody was heard for some time counts only as far
// as this node listened: what a late tick is late by does not count (H8). So a
// slow machine needs longer until it concludes anything, and gets there; if
// each late tick began the count anew, a machine that is often late never
// would.

// ear returns the listening clock's time.
func (c *Core) ear() time.Duration {
	now := c.now
	if c.late(now) {
		now = c.lastTick + c.cfg.Interval
	}
	return now - c.asleep
}

// late reports whether a tick at time now comes so late that others may have
// waited for it.
func (c *Core) late(now time.Duration) bool {
	return now-c.lastTick >= 2*c.cfg.Interval && c.cfg.mutant&countStalledSilence == 0
}

// slept accounts for the time before a tick, as tick begins.
func (c *Core) slept() (late bool) {
	gap := c.now - c.lastTick
	if late = c.late(c.now); late {
		c.stats.LateTicks++
		c.asleep += gap - c.cfg.Interval
		c.streak = c.now
	}
	c.lastTick = c.now
	if late && c.cfg.mutant&lateResets != 0 {
		c.listenAnew()
		c.joinEar = c.ear()
	}
	return late
}

// listenAnew forgets how long others have been silent: this node did not
// listen for longer than a lease, and may have missed anything.
func (c *Core) listenAnew() {
	c.streak = c.now
	for _, p := range c.peers {
		p.earRx = c.ear()
	}
}

// A slow node is held out. Under lan everyone waits for the answer of every
// director that is heard, so a director speaks only once it has proved, by
// ticks that were all on time, that it can answer; and it steps aside when it
// was fenced while others serve. Each time that this comes soon after the last
// it must prove itself for twice as long. When nobody serves, nobody is held
// out.

const (
	// maxHold bounds for how long a node must prove itself.
	maxHold = 30 * time.Second
	// proven is for how many times that long it must then have served to be
	// trusted as before.
	proven = 20
	// farewells is how often something is said that is said for the last time.
	farewells = 3
)

// heldOut reports whether this node must still prove that it is fast enough.
func (c *Core) heldOut() bool {
	return c.served() && c.now-c.streak < max(c.hold, c.maxLw) && c.cfg.mutant&noProof == 0
}

// fenced makes it longer until this node takes part again, if it had to fence
// itself soon after it last began to.
func (c *Core) fenced() {
	switch {
	case c.state != Ready && c.state != Draining:
	case c.now-c.readyAt > proven*max(c.hold, c.maxLw):
		c.hold = 0
	default:
		c.hold = min(2*max(c.hold, c.maxLw), maxHold)
	}
}

// stepAside has this node say that it is not to be waited for. Under majority
// nobody waits for it, and its vote may be needed.
func (c *Core) stepAside() {
	if c.spoke != 0 && !c.majority() && !c.cfg.Witness && c.heldOut() {
		c.aside = farewells
	}
}

// hush ends a stepping aside: nothing is said any more, until speaks allows it.
func (c *Core) hush() {
	if c.aside > 0 {
		if c.aside--; c.aside == 0 {
			c.spoke = 0
		}
	}
}
