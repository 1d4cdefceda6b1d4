package membership

import (
	"slices"
	"time"

	"saru/partition"
)

// Times of the implementation; a Config may have others.
const (
	DefaultLinger    = 3 * time.Second
	DefaultLingerMax = 60 * time.Second
	// DefaultBarrierWait is long: a planned move has time, and one whose
	// connections come late may cost those that are not there.
	DefaultBarrierWait = 8 * time.Second
	// DefaultLeaveWithin has room for a barrier, lingering and a barrier back.
	DefaultLeaveWithin = 20 * time.Second
	DefaultHysteresis  = 10 * time.Second
)

// Watch returns L_w: for how long a watcher must wait until a lease that it
// saw claimed has surely ended, by any clocks that differ by 1 % each.
func Watch(lease time.Duration) time.Duration { return (lease + lateness) * 103 / 100 }

// A Config is what a Core needs to know of its node and its share.
type Config struct {
	Node        string // at most MaxName bytes
	Incarnation uint64 // random, new at every start
	Host        uint64 // the same for all that the start of one closes the kernel of; else different
	Cluster     string
	Share       uint16
	Shape       uint64        // hash of all that decides a packet, voters apart; 0 for a witness that knows none
	Buckets     int           // a power of two, 2 to MaxBuckets
	Lease       time.Duration // L
	Interval    time.Duration // I, between ticks
	Arm         time.Duration // a: how long after arming a heartbeat it can be confirmed
	Settle      time.Duration // between another's release of a bucket and its opening here
	Weight      uint16
	Witness     bool     // votes, never takes a share
	Voters      []NodeID // at most MaxNodes; none: quorum lan, else a majority of them
	Frames      bool     // heartbeats come as frames to the shared MAC too

	Linger      time.Duration // rest of a released bucket is kept at least so long
	LingerMax   time.Duration // and at most so long
	BarrierWait time.Duration // bound of waiting for a Barrier
	Hysteresis  time.Duration // for how long a degradation must last, and be gone, to count
	LeaveWithin time.Duration // bound of giving the share away before leaving

	mutant mutant // deliberate errors, for tests
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Linger, DefaultLinger)
	set(&c.LingerMax, DefaultLingerMax)
	set(&c.BarrierWait, DefaultBarrierWait)
	set(&c.LeaveWithin, DefaultLeaveWithin)
	set(&c.Hysteresis, DefaultHysteresis)
	if c.Witness && c.Buckets == 0 {
		c.Buckets = 64
	}
	c.Voters = slices.Clone(c.Voters)
	slices.Sort(c.Voters)
	c.Voters = slices.Compact(c.Voters)
}

// A Kind says what an Action is.
type Kind uint8

// The actions.
const (
	Arm     Kind = iota // arm N, before heartbeat N is sent
	Send                // send Message to the node To, or to all when To is 0
	Confirm             // renew the lease if N is still armed
	Apply               // make Open and Rest the kernel's sets; answer with Applied
	Barrier             // wait for connections; answer with BarrierDone(N)
	Give                // tell others of handshakes: buckets will go to them, or just went
)

// An Action is something to be done outside, in order. What it points to is
// valid until the next event.
type Action struct {
	Kind    Kind
	N       uint64
	To      NodeID
	Message Message
	Open    partition.Set
	Rest    partition.Set // holds Open
	Gained  partition.Set // of Open: the buckets that were not open before
	Back    bool          // of a Barrier: To has caught up with this node, rather than this node with To
}

// Stats counts what a Core saw. Every way a message can be refused has one.
type Stats struct {
	Heartbeats      uint64 // acted on
	Acks            uint64
	OldHeartbeats   uint64 // older than or equal to one seen (V2)
	UnknownInc      uint64 // of another incarnation, without a fresh echo of ours
	ForeignCluster  uint64
	ForeignShape    uint64 // another share configuration, or voters that differ in more than one
	ForeignVersion  uint64
	OwnName         uint64 // another machine uses our name
	Clones          uint64 // two machines use one peer's name
	TooManyNodes    uint64
	StaleAcks       uint64
	BadAssignments  uint64
	EpochConflicts  uint64 // one epoch with two contents
	Refused         uint64 // buckets refused to others
	LostGrants      uint64 // buckets open here and refused by others
	Conflicts       uint64 // buckets that two directors had open after a split healed
	ConflictMicros  uint64 // for how long, in all
	Fences          uint64 // H7
	Mutes           uint64 // H6: closed because a peer does not hear us
	FramesLost      uint64 // closed because others hear frames and we do not
	LateTicks       uint64
	Confirms        uint64
	ApplyFailures   uint64
	AssignmentsMade uint64
	Handovers       uint64 // buckets released to a taker that was ready
	BarrierTimeouts uint64
	EventsLost      uint64 // more happened at once than Events keeps
}
