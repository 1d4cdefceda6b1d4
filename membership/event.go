package membership

import (
	"fmt"

	"saru/partition"
)

// maxEvents bounds the events that wait for the caller.
const maxEvents = 256

// An EventKind says what an Event tells.
type EventKind uint8

// The kinds of events, and which fields each has besides Kind and Epoch.
const (
	StateChanged  EventKind = iota // Node is Is, and was Was ("" at first), because Why
	MasterChanged                  // Node leads; From did
	Assigned                       // Node issued the assignment that is followed now
	Moved                          // that assignment gives Buckets of From ("": of nobody) to To, because Why
	Opened                         // this node took Buckets
	Closed                         // this node let go of Buckets, because Why
	Conflicted                     // Node has Buckets open, and so has this node
	Frozen                         // planned moves are stopped
	Thawed                         // planned moves go on
	BarrierLate                    // connections did not come from (or reach) Node in time
)

func (k EventKind) String() string {
	switch k {
	case StateChanged:
		return "state"
	case MasterChanged:
		return "master"
	case Assigned:
		return "assigned"
	case Moved:
		return "moved"
	case Opened:
		return "opened"
	case Closed:
		return "closed"
	case Conflicted:
		return "conflict"
	case Frozen:
		return "frozen"
	case Thawed:
		return "thawed"
	case BarrierLate:
		return "barrier late"
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// An Event is something that happened, for people. Nodes go by their names, or
// by their ids in hexadecimal as long as no name was heard.
type Event struct {
	Kind    EventKind
	Epoch   Epoch // that this node followed then
	Node    string
	From    string
	To      string
	Was, Is string // states, as Snapshot has them
	Why     string
	Buckets partition.Set
}

// String tells the event in one line.
func (e Event) String() string {
	why := ""
	if e.Why != "" {
		why = ": " + e.Why
	}
	switch e.Kind {
	case StateChanged:
		if e.Was == "" {
			return e.Node + " is " + e.Is + why
		}
		return e.Node + " is " + e.Is + ", was " + e.Was + why
	case MasterChanged:
		if e.Node == "" {
			return "nobody is the master, " + e.From + " was"
		}
		if e.From == "" {
			return e.Node + " is the master"
		}
		return e.Node + " is the master, " + e.From + " was"
	case Assigned:
		return fmt.Sprintf("epoch %v by %s", e.Epoch, e.Node)
	case Moved:
		from := ""
		if e.From != "" {
			from = " from " + e.From
		}
		return fmt.Sprintf("epoch %v: %v%s to %s%s", e.Epoch, e.Buckets, from, e.To, why)
	case Opened:
		return fmt.Sprintf("took %v", e.Buckets)
	case Closed:
		return fmt.Sprintf("let go of %v%s", e.Buckets, why)
	case Conflicted:
		return fmt.Sprintf("%s has %v open, and so has this node", e.Node, e.Buckets)
	case Frozen:
		return "planned moves are stopped"
	case Thawed:
		return "planned moves go on"
	case BarrierLate:
		return "connections of " + e.Node + " and of this node did not come together in time"
	}
	return e.Kind.String()
}

// shown is what the events have told of this node, so that only changes make
// one.
type shown struct {
	state  State
	any    bool
	master string
	freeze uint32
}

// Events returns what happened since the last call, oldest first. At most 256
// wait; what is more is dropped and counted. The slice is valid until the next
// event.
func (c *Core) Events() []Event {
	out := c.events
	c.events, c.eventsSpare = c.eventsSpare[:0], out
	return out
}

func (c *Core) note(e Event) {
	if len(c.events) >= maxEvents {
		c.stats.EventsLost++
		return
	}
	e.Epoch, _ = c.epoch()
	c.events = append(c.events, e)
}

// observe notes what has changed of this node and its peers.
func (c *Core) observe() {
	if s := c.State(); s != c.shown.state || !c.shown.any {
		was := ""
		if c.shown.any {
			was = c.shown.state.String()
		}
		c.shown.state, c.shown.any = s, true
		c.note(Event{Kind: StateChanged, Node: c.cfg.Node, Was: was, Is: s.String(), Why: c.why()})
	}
	for _, p := range c.peers {
		is, why := c.standing(p)
		if is == p.shown {
			continue
		}
		if p.inc != p.shownInc && p.shownInc != 0 {
			why = "restarted"
		}
		c.note(Event{Kind: StateChanged, Node: c.nameOf(p.id), Was: p.shown, Is: is, Why: why})
		p.shown, p.shownInc = is, p.inc
	}
	if c.freeze != c.shown.freeze {
		was := c.shown.freeze%2 == 1
		c.shown.freeze = c.freeze
		switch {
		case c.Frozen() && !was:
			c.note(Event{Kind: Frozen})
		case !c.Frozen() && was:
			c.note(Event{Kind: Thawed})
		}
	}
}

// observeMaster notes a change of the master.
func (c *Core) observeMaster() {
	if m := c.Master(); m != c.shown.master {
		c.note(Event{Kind: MasterChanged, Node: m, From: c.shown.master})
		c.shown.master = m
	}
}

// observeShare notes what the kernel has open now, and had before.
func (c *Core) observeShare(was, is partition.Set) {
	if gone := was.Minus(is); !gone.Empty() {
		c.note(Event{Kind: Closed, Buckets: gone, Why: c.closeWhy})
	}
	if taken := is.Minus(was); !taken.Empty() {
		c.note(Event{Kind: Opened, Buckets: taken})
	}
	c.closeWhy = ""
}

// observeMoves notes what the assignment that is followed now gives to others
// than the one before it did.
func (c *Core) observeMoves(before *Assignment) {
	now := c.assign
	c.note(Event{Kind: Assigned, Node: c.issuer(now)})
	if before == nil && now.Epoch.Issuer != c.cfg.Incarnation {
		return // a newcomer cannot know what was before
	}
	moves := map[[2]int]*partition.Set{}
	var order [][2]int
	for b, to := range now.Owner {
		move := [2]int{-1, int(to)}
		if before != nil {
			move[0] = int(before.Owner[b])
			from, to := &before.Seats[move[0]], &now.Seats[move[1]]
			if from.Node == to.Node && from.Inc == to.Inc {
				continue
			}
		}
		if moves[move] == nil {
			moves[move] = new(partition.Set)
			order = append(order, move)
		}
		moves[move].Add(b)
	}
	for _, move := range order {
		e := Event{Kind: Moved, To: c.nameOf(now.Seats[move[1]].Node), Buckets: *moves[move], Why: "nobody had it"}
		if before != nil {
			from := &before.Seats[move[0]]
			e.From, e.Why = c.nameOf(from.Node), c.moveWhy(before, from, &now.Seats[move[1]])
		}
		c.note(e)
	}
}

func (c *Core) issuer(a *Assignment) string {
	for i := range a.Seats {
		if s := &a.Seats[i]; s.Inc == a.Epoch.Issuer {
			return c.nameOf(s.Node)
		}
	}
	for _, p := range c.peers {
		if p.known && p.inc == a.Epoch.Issuer {
			return p.hb.Name
		}
	}
	return "an earlier master"
}

// moveWhy says why the assignment that is followed now moves a bucket that
// before had given to from.
func (c *Core) moveWhy(before *Assignment, from, to *Seat) string {
	kept := c.assign.find(from.Node, from.Inc)
	switch {
	case kept == nil:
		why := c.assign.why(from.Node)
		if why == Unknown {
			why = c.cause(from)
		}
		return c.nameOf(from.Node) + " " + why.String()
	case before.find(to.Node, to.Inc) == nil:
		return c.nameOf(to.Node) + " takes part"
	case kept.Weight != from.Weight:
		return fmt.Sprintf("the weight of %s is %d, was %d", c.nameOf(from.Node), kept.Weight, from.Weight)
	}
	if had := before.find(to.Node, to.Inc); had.Weight != to.Weight {
		return fmt.Sprintf("the weight of %s is %d, was %d", c.nameOf(to.Node), to.Weight, had.Weight)
	}
	return "to even the shares"
}

// A Cause is why a director has no share any more.
type Cause uint8

// The causes, as they go over the wire.
const (
	Unknown Cause = iota
	HasLeft
	IsUnreachable
	IsDeaf
	WasRestarted
	IsLeaving
	Drains
	HadToClose
	ReachesLess
	IsDegraded
	WasSlow
	causes
)

var causeText = [causes]string{
	"has no share by the master's view", "has left", "is unreachable", "does not hear the master", "was restarted", "is leaving", "drains",
	"had to close its share", "reaches fewer ping nodes than others", "is degraded", "was too slow",
}

func (w Cause) String() string { return causeText[min(w, causes)%causes] }

// cause says why s has no share any more, as this node sees it.
func (c *Core) cause(s *Seat) Cause {
	state, flags, inc := c.state, c.flags(), c.cfg.Incarnation
	if s.Node != c.id {
		p := c.peer(s.Node)
		switch {
		case p == nil || !p.known:
			return Unknown
		case p.inc != s.Inc:
			return WasRestarted
		case p.left && p.has(FlagAside):
			return WasSlow
		case p.left:
			return HasLeft
		case !p.heard || p.missed >= suspectAfter:
			return IsUnreachable
		case c.lostUs(p):
			return IsDeaf
		}
		state, flags, inc = p.hb.State, p.hb.Flags, p.inc
	}
	switch {
	case inc != s.Inc:
		return WasRestarted
	case flags&(FlagGoing|FlagLeave) != 0:
		return IsLeaving
	case state == Draining:
		return Drains
	case state == Joining || state == Fenced:
		return HadToClose
	case flags&FlagIneligible != 0:
		return ReachesLess
	case flags&FlagDegraded != 0:
		return IsDegraded
	}
	return Unknown
}

// gone returns who had a seat in before and has none among seats, and why.
func (c *Core) gone(before *Assignment, seats []Seat) (gone []Gone) {
	if before == nil {
		return nil
	}
	now := Assignment{Seats: seats}
	for i := range before.Seats {
		if s := &before.Seats[i]; now.find(s.Node, s.Inc) == nil {
			gone = append(gone, Gone{s.Node, c.cause(s)})
		}
	}
	return gone
}

// why returns why the assignment has no seat for a node any more, if it says.
func (a *Assignment) why(id NodeID) Cause {
	for _, g := range a.Gone {
		if g.Node == id {
			return g.Why
		}
	}
	return Unknown
}

// find returns the seat of one incarnation of a node, or nil.
func (a *Assignment) find(id NodeID, inc uint64) *Seat {
	for i := range a.Seats {
		if s := &a.Seats[i]; s.Node == id && s.Inc == inc {
			return s
		}
	}
	return nil
}

// nameOf returns the name of a node, or its id when none was heard.
func (c *Core) nameOf(id NodeID) string {
	if id == c.id {
		return c.cfg.Node
	}
	if name := c.Name(id); name != "" {
		return name
	}
	return id.String()
}
