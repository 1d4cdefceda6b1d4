package membership

// Closed reports whether nothing is open here, and nothing is about to be: the
// kernel has said so, and no change of its sets is under way.
func (c *Core) Closed() bool {
	return !c.holds() && !c.applying && !c.unsure && !c.closeAll
}

// Draining reports whether this node gives its share away, as Drain asked.
func (c *Core) Draining() bool { return c.drain }
