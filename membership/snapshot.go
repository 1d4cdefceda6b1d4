package membership

import (
	"time"

	"saru/partition"
)

// A Snapshot is what a Core knows, for people.
type Snapshot struct {
	State     State  // Degraded for Ready when so
	Why       string // why it is not ready, or ""
	Master    string
	Epoch     Epoch
	Open      partition.Set
	Rest      partition.Set // in which established flows are served; holds Open
	Assigned  partition.Set
	Policy    string        // lan or majority
	Have      int           // voters heard, this node included
	Need      int           // voters needed
	Frozen    bool          // planned moves are stopped
	N         uint64        // the last heartbeat sent
	LeaseLeft time.Duration // by this node's own clock
	Members   []MemberInfo  // this node first
	Stats     Stats
}

// A MemberInfo is one node as this one sees it.
type MemberInfo struct {
	Node   NodeID
	Name   string
	Role   string // director or witness
	State  string // a State, or "unreachable", "foreign"
	Why    string
	Weight int
	Open   int // buckets that it may have open
	Rest   int // buckets in which it serves established flows
	Heard  bool
	Voter  bool
	Silent time.Duration // since its last heartbeat
}

// Snapshot returns what the Core knows at time now.
func (c *Core) Snapshot(now time.Duration) Snapshot {
	c.now = now
	s := Snapshot{
		State: c.State(), Why: c.why(), Master: c.Master(), Open: c.open, Rest: c.rest, Assigned: c.mine,
		Policy: "lan", Have: 1, Need: 1, Frozen: c.Frozen(), N: c.n, Stats: c.stats,
	}
	s.Epoch, _ = c.epoch()
	if c.confirmed > 0 && c.holds() {
		s.LeaseLeft = max(0, c.confirmAt+c.cfg.Lease-now)
	}
	s.Members = append(s.Members, MemberInfo{
		Node: c.id, Name: c.cfg.Node, Role: role(c.cfg.Witness), State: s.State.String(), Why: s.Why,
		Weight: int(c.cfg.Weight), Open: c.open.Len(), Rest: c.rest.Len(), Heard: true, Voter: c.votes(c.id),
	})
	for _, p := range c.peers {
		s.Members = append(s.Members, c.info(p))
		if p.director() && c.proven(p) {
			s.Have++
		}
	}
	if c.majority() {
		s.Policy, s.Have, s.Need = "majority", c.votersHeard(), c.quorum()
	}
	return s
}

func role(witness bool) string {
	if witness {
		return "witness"
	}
	return "director"
}

func (c *Core) info(p *peer) MemberInfo {
	m := MemberInfo{Node: p.id, Heard: p.heard, Voter: c.votes(p.id), Silent: c.now - p.lastRx}
	if p.known {
		m.Name, m.Role, m.Weight = p.hb.Name, role(p.has(FlagWitness)), int(p.hb.Weight)
		m.Open, m.Rest = p.hb.Open.Len(), p.hb.Rest.Len()
	}
	m.State, m.Why = c.standing(p)
	if !p.heard && !p.foreign {
		m.Open, m.Rest = 0, 0
	}
	return m
}

// standing returns p's state as this node sees it, and why, or "".
func (c *Core) standing(p *peer) (state, why string) {
	switch {
	case p.foreign && p.ancient:
		return "foreign", "speaks another version of the protocol; one of the two must be upgraded"
	case p.foreign:
		return "foreign", "has another share configuration, or other voters; compare [share], quorum and voters"
	case p.left && p.has(FlagAside):
		return p.hb.State.String(), "was too slow, and proves that it is fast enough"
	case p.left:
		return Left.String(), ""
	case !p.heard:
		return "unreachable", "no heartbeat for longer than its lease"
	case c.ghost(p):
		return "unreachable", "only recordings of it are heard"
	case p.hb.State == Ready && p.has(FlagIneligible):
		state, why = Degraded.String(), "reaches fewer ping nodes than others"
	case p.hb.State == Ready && p.has(FlagDegraded):
		state, why = Degraded.String(), "says that it is degraded"
	default:
		state = p.hb.State.String()
	}
	switch {
	case c.deaf(p):
		why = "does not hear this node"
	case c.now-p.cloneAt < foreignFor:
		why = "another machine uses its name too"
	}
	return state, why
}

// why says what keeps this node from being ready, or from a full share.
func (c *Core) why() string {
	switch {
	case c.leaving:
		return "leaving"
	case c.linkDown:
		return "no carrier on the share's interface"
	case c.noFrames:
		return "hears no frames to the shared MAC while others do: has a switch learned it at another port?"
	case c.state == Fenced:
		return "closing what is open: " + c.fenceWhy
	case c.state == Ready && c.impaired.on:
		return "reaches fewer ping nodes than others"
	case c.state == Ready && c.degraded.on:
		return "degraded"
	case !c.cfg.Witness && c.open.Empty() && c.haunted():
		return "a director is heard that does not answer: it is out of reach, or its heartbeats are recordings; with ping nodes this node could tell"
	case c.state != Joining || c.cfg.Witness:
		return ""
	case c.cloned():
		return "another machine uses this node's name; change cluster.node on one of them"
	case c.now-c.strangeAt < foreignFor:
		return "somebody who sends no heartbeats serves the share's addresses"
	case c.strange():
		return "a node with another version or share configuration is heard; make the configurations equal"
	case c.unsure || c.closeAll || c.holds():
		return "the kernel's table is not known to be closed"
	case c.ear()-c.joinEar <= c.maxLw:
		return "listening for others"
	case c.heldOut():
		return "was too slow, and proves that it is fast enough while others serve"
	case !c.gateFull:
		return "waiting for the cluster's connections (syncd, or timing.delay without one)"
	}
	return ""
}

// State returns this node's state.
func (c *Core) State() State {
	if c.state == Ready && (c.degraded.on || c.impaired.on) {
		return Degraded
	}
	return c.state
}

// Why says what keeps this node from being ready, or "".
func (c *Core) Why() string { return c.why() }

// Leads reports whether this node is the master.
func (c *Core) Leads() bool {
	cs := c.candidates()
	return len(cs) > 0 && cs[0].Node == c.id
}

// Name returns the name of a node that was heard, or "".
func (c *Core) Name(id NodeID) string {
	if p := c.peer(id); p != nil && p.known {
		return p.hb.Name
	}
	return ""
}
