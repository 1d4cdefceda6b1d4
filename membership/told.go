package membership

import (
	"time"

	"saru/partition"
)

// What its surroundings tell a Core besides messages: what the kernel holds,
// how this machine is, and what people ask for.

// Applied answers an Apply: open and rest are what was read back afterwards;
// known says whether that could be done.
func (c *Core) Applied(now time.Duration, open, rest partition.Set, known bool) {
	c.begin(now)
	if !c.applying {
		return
	}
	c.applying = false
	c.unsure = !known
	if known {
		if open != c.asked || rest != c.askedRest {
			c.stats.ApplyFailures++
		}
		c.observeShare(c.sure, open)
		c.sure = open
		if given := c.open.Minus(open).Intersect(rest); !given.Empty() {
			c.do(Action{Kind: Give})
		}
		c.setHeld(open, rest)
		if c.closeReq.Intersect(open) != c.closeReq {
			c.minConfirm = c.n + 1
		}
		c.closeReq = c.closeReq.Intersect(open)
	} else {
		c.stats.ApplyFailures++
	}
	c.closed()
	c.finish()
}

// closed ends closeAll once the kernel is known to be closed.
func (c *Core) closed() {
	if !c.closeAll || c.applying || c.unsure || !c.open.Empty() || !c.rest.Empty() || c.leaving {
		return
	}
	c.closeAll = false
	if c.state == Fenced {
		c.state, c.joinEar = Joining, c.ear()
		c.stepAside()
	}
}

// Lost says that the kernel's table was found changed by others and has been
// replaced by a closed one.
func (c *Core) Lost(now time.Duration) {
	c.begin(now)
	if !c.applying {
		c.closeWhy = whyLost
		c.observeShare(c.sure, partition.Set{})
		c.sure = partition.Set{}
		c.setHeld(partition.Set{}, partition.Set{})
	}
	c.finish()
}

// BarrierDone answers the Barrier with that token.
func (c *Core) BarrierDone(now time.Duration, token uint64) {
	c.begin(now)
	for _, p := range c.peers {
		if token != 0 && p.in.token == token {
			c.caughtUp(p)
		}
		if token != 0 && p.back.token == token {
			c.caughtBack(p)
		}
	}
	c.finish()
}

// SetGate tells the state gate: full, this node holds the cluster's
// connections; cold, it may serve if nobody else does.
func (c *Core) SetGate(now time.Duration, full, cold bool) {
	c.now, c.gateFull, c.gateCold = now, full, cold
}

// PingOK says that a ping node answered: our sending works.
func (c *Core) PingOK(now time.Duration) { c.now, c.pingAt = now, now }

// SetReach tells how many ping nodes answer. Who reaches fewer than others is
// not eligible (heartbeat's ipfail).
func (c *Core) SetReach(now time.Duration, nodes int) { c.now, c.reach = now, uint8(min(nodes, 255)) }

// SetDegraded tells that this node would serve, but worse than a healthy one.
func (c *Core) SetDegraded(now time.Duration, on bool) { c.now, c.degrade = now, on }

// SetWeight changes this node's weight.
func (c *Core) SetWeight(now time.Duration, w uint16) { c.now, c.cfg.Weight = now, w }

// Freeze stops all planned moves in the whole cluster, or lets them go on.
func (c *Core) Freeze(now time.Duration, on bool) {
	c.begin(now)
	if c.Frozen() != on {
		c.freeze++
	}
	c.finish()
}

// Frozen reports whether planned moves are stopped.
func (c *Core) Frozen() bool { return c.freeze%2 == 1 }

// Drain gives the share away, or takes part again.
func (c *Core) Drain(now time.Duration, on bool) {
	c.begin(now)
	c.drain = on
	switch {
	case on && c.state == Ready:
		c.state = Draining
	case !on && c.state == Draining && !c.leaving:
		c.state = Ready
	}
	c.finish()
}

// Fence closes everything and joins anew, as after a lost carrier (H7).
func (c *Core) Fence(now time.Duration) {
	c.begin(now)
	c.fence(whyAsked)
	c.finish()
}

// Suspended says that this machine slept, its clocks too: what is open may be
// others' by now, and its lease lives on by the kernel's clock (H7).
func (c *Core) Suspended(now time.Duration) {
	c.begin(now)
	c.listenAnew()
	c.fence(whySlept)
	c.finish()
}

// Leave gives the share away, closes everything and then says farewell.
func (c *Core) Leave(now time.Duration) {
	c.begin(now)
	if !c.leaving {
		c.leaving, c.leaveAt = true, now
	}
	if c.state == Ready {
		c.state = Draining
	}
	c.finish()
}

// Gone reports whether all is closed and the farewell was sent a few times.
func (c *Core) Gone() bool { return c.farewells >= farewells }

// SetLink tells whether the LAN's carrier is there. Without it everything is
// closed, and the share waits until it is back (H7).
func (c *Core) SetLink(now time.Duration, up bool) {
	c.begin(now)
	if c.linkDown == !up {
		return
	}
	c.linkDown = !up
	if c.linkDown {
		c.fence(whyLink)
	}
	c.joinEar = c.ear()
	c.finish()
}
