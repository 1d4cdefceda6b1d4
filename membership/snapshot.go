package membership

import (
	"time"

	"saru/partition"
)

// A Snapshot is what a Core knows, for people.
type Snapshot struct {
	State     State
	Why       string // why it is not ready, or ""
	Master    string
	Epoch     Epoch
	Open      partition.Set
	Assigned  partition.Set
	N         uint64        // the last heartbeat sent
	LeaseLeft time.Duration // by this node's own clock
	Members   []MemberInfo  // this node first
	Stats     Stats
}

// A MemberInfo is one director as this one sees it.
type MemberInfo struct {
	Node   NodeID
	Name   string
	State  string // a State, or "unreachable", "foreign"
	Why    string
	Weight int
	Open   int // buckets that it may have open
	Heard  bool
	Silent time.Duration // since its last heartbeat
}

// Snapshot returns what the Core knows at time now.
func (c *Core) Snapshot(now time.Duration) Snapshot {
	s := Snapshot{
		State: c.state, Why: c.why(), Master: c.Master(), Open: c.open, Assigned: c.mine, N: c.n, Stats: c.stats,
	}
	s.Epoch, _ = c.epoch()
	if c.confirmed > 0 && !c.open.Empty() {
		s.LeaseLeft = max(0, c.confirmAt+c.cfg.Lease-now)
	}
	s.Members = append(s.Members, MemberInfo{
		Node: c.id, Name: c.cfg.Node, State: c.state.String(), Why: s.Why, Weight: int(c.cfg.Weight), Open: c.open.Len(), Heard: true,
	})
	for _, p := range c.peers {
		s.Members = append(s.Members, c.info(p, now))
	}
	return s
}

func (c *Core) info(p *peer, now time.Duration) MemberInfo {
	m := MemberInfo{Node: p.id, Heard: p.heard, Silent: now - p.lastRx}
	if p.hb != nil {
		m.Name, m.State, m.Weight, m.Open = p.hb.Name, p.hb.State.String(), int(p.hb.Weight), p.hb.Open.Len()
	}
	switch {
	case p.foreign:
		m.State, m.Why = "foreign", "speaks another version or has another share configuration"
	case p.left:
	case !p.heard:
		m.State, m.Why, m.Open = "unreachable", "no heartbeat for longer than its lease", 0
	case c.deaf(p):
		m.Why = "does not hear this node"
	}
	return m
}

// why says what keeps this node from being ready.
func (c *Core) why() string {
	switch {
	case c.leaving:
		return "leaving"
	case c.linkDown:
		return "no carrier on the share's interface"
	case c.state == Fenced:
		return "the lease lapsed; closing what is open"
	case c.state != Joining:
		return ""
	case c.foreign():
		return "a node with another version or share configuration is heard; make the configurations equal"
	case c.unsure || c.closeAll || !c.open.Empty():
		return "the kernel's table is not known to be closed"
	case c.now-c.joinSince <= c.maxLw:
		return "listening for others"
	case !c.gateFull:
		return "waiting for the cluster's connections (syncd, or timing.delay without one)"
	}
	return ""
}

// State returns this node's state.
func (c *Core) State() State { return c.state }

// Why says what keeps this node from being ready, or "".
func (c *Core) Why() string { return c.why() }

// Leads reports whether this node is the master.
func (c *Core) Leads() bool {
	cs := c.candidates()
	return len(cs) > 0 && cs[0].Node == c.id
}
