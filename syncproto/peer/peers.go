package peer

import (
	"net/netip"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// A peerState is what we know of one other node, in its present life. It is
// guarded by Session.mu.
//
//	unknown --heartbeat--> pull wanted --pull done--> following
//	following --gap--> missing told (NACK) --resent--> following
//	following --gap older than the peer keeps, or too many--> pull wanted
//	any --new boot--> pull wanted
type peerState struct {
	node        conntable.NodeID
	name        string
	boot        seal.Boot
	incarnation uint64
	addr        netip.AddrPort // where its datagrams come from
	port        uint16         // its TCP port
	heardAt     time.Time
	since       time.Time // when this life of it was heard first
	way         peerPath
	clashAt     time.Time // when another node spoke under its name
	clashAddr   netip.AddrPort
	synced      bool
	holds       bool // it has called itself synced, in this life or before
	connections uint32
	version     uint8 // the highest of the protocol that it understands
	streams     uint8 // that it serves
	rate        uint32
	asks        uint64  // to be answered
	asksOf      uint64  // what it had sent then: it is answered when that is delivered
	receipt     Receipt // that it waits for

	gaps      gaps
	lowest    uint64 // what it can still resend from
	gapAt     time.Time
	missingAt time.Time // when to ask next
	wait      time.Duration

	pullWanted bool
	pulling    bool
	pulled     bool // once, in this life
	pullAt     time.Time
	failures   int
	pulledAt   time.Time
	pullRest   time.Duration
	pullErr    error
	pull       pullState // to go on with
	anew       bool      // the one under way will not do
	lacking    bool      // nor will that alone: what was given up since it began may be missing
	had        bool      // all that it held was pulled once, from it or from who held the same
	pullTotal  uint32    // for people
	pullDone   uint64

	received, lost, repaired, restarts uint64
	bulk                               uint64 // records pulled

	digests digests
	equal   *bool
	equalH  uint64
	unequal int // comparisons in a row that found a difference

	services peerServices

	repairAt   time.Time // not before
	repairWait time.Duration
	repairs    uint64
	mended     uint64 // records that came by repairs
	fetched    bool   // in this life all that differed was, once
}

func (p *peerState) up(now time.Time) bool { return now.Sub(p.heardAt) < silentAfter }

func (p *peerState) stateName(now time.Time) string {
	switch {
	case !p.up(now):
		return "silent"
	case p.pulling, p.pullWanted:
		return "pulling"
	case !p.synced:
		return "joining"
	}
	return "up"
}

// begin starts a new life of the peer.
func (p *peerState) begin(boot seal.Boot, hb *heartbeat, now time.Time) {
	p.boot, p.incarnation = boot, hb.incarnation
	p.since, p.way.groupAt = now, now
	p.gaps.begin(hb.highest)
	p.gapAt = time.Time{}
	p.pulled, p.pullAt, p.failures = false, now, 0
	p.pullAnew()
	p.digests, p.equal, p.equalH, p.unequal = digests{}, nil, 0, 0
	p.repairAt, p.repairWait, p.fetched = time.Time{}, 0, false
	p.services = peerServices{fetching: p.services.fetching, list: p.services.list}
}

// pullAnew arranges for a pull of all, whatever is under way.
func (p *peerState) pullAnew() {
	p.pullWanted, p.pull, p.anew, p.lacking = true, pullState{}, p.pulling, false
}

// awaits reports whether a joiner must have what p holds, though it is silent
// now, or has a new life that does not hold all of it yet. Who is silent, and
// sends all the same what was asked for, is not dead.
func (s *Session) awaits(p *peerState, now time.Time) bool {
	if !p.holds || p.had || p.pulled && p.synced {
		return false
	}
	return p.pulling || now.Sub(p.heardAt) < awaitFor && (p.synced || now.Sub(s.started) < awaitMost)
}

// noteGap arranges for what is missing to be asked for.
func (p *peerState) noteGap(lost uint64, now time.Time) {
	if lost == 0 {
		return
	}
	p.lost += lost
	if p.gapAt.IsZero() {
		p.gapAt = now
	}
	p.wait = missingAgain
	// Not later than what is missing already was to be asked for.
	p.missingAt = earlier(p.missingAt, now.Add(missingWait))
	if p.gaps.tooMany() {
		p.gaps.forget(p.gaps.next - 1)
		p.noteFilled()
		p.pullWanted, p.lacking = true, p.pulling || p.pull.mark != nil
	}
}

// noteFilled ends the gap if nothing is missing any more.
func (p *peerState) noteFilled() {
	if len(p.gaps.spans) == 0 {
		p.gapAt, p.missingAt = time.Time{}, time.Time{}
	}
}

// PeerStatus is what a node knows of a peer.
type PeerStatus struct {
	Name        string  `json:"name"`
	Addr        string  `json:"addr"`
	State       string  `json:"state"`        // up, joining, pulling, silent
	LagMS       float64 `json:"lag_ms"`       // age of the oldest datagram that is missing, 0 if none is
	Received    uint64  `json:"received"`     // records, live and pulled
	Lost        uint64  `json:"lost"`         // datagrams that were seen to be missing
	Repaired    uint64  `json:"repaired"`     // of those, resent to us
	Missing     uint64  `json:"missing"`      // of those, still missing
	DigestEqual *bool   `json:"digest_equal"` // null while not compared yet
	HeardMS     float64 `json:"heard_ms"`     // since its last heartbeat
	Synced      bool    `json:"synced"`       // it says so itself
	Connections uint32  `json:"connections"`  // it says it has
	Version     uint8   `json:"version"`      // of the protocol, the highest that it understands
	Path        string  `json:"path"`         // group, alone (what we send it)
	Datagram    uint16  `json:"datagram"`     // the largest from us that it got lately, bytes
	Pulled      uint64  `json:"pulled"`       // records that came in bulk
	PullDone    uint64  `json:"pull_done"`    // of the pull that goes on, or of the last one
	PullTotal   uint32  `json:"pull_total"`   // connections that the peer had when that began
	Restarts    uint64  `json:"restarts"`     // seen by us
	Repairs     uint64  `json:"repairs"`      // of tables that differed
	Mended      uint64  `json:"mended"`       // records that came by them
	Error       string  `json:"error,omitempty"`
	// How its services differ from ours, for people; empty if they do not,
	// or have not for long.
	Drift []string `json:"drift,omitempty"`
}

func (p *peerState) status(now time.Time) PeerStatus {
	st := PeerStatus{
		Name: p.name, Addr: p.addr.String(), State: p.stateName(now),
		Received: p.received, Lost: p.lost, Repaired: p.repaired,
		HeardMS: ms(now.Sub(p.heardAt)), Synced: p.synced, Connections: p.connections, Version: p.version, Path: "group", Datagram: p.way.path.size,
		Pulled: p.bulk, PullDone: p.pullDone, PullTotal: p.pullTotal, Restarts: p.restarts, DigestEqual: p.equal,
		Repairs: p.repairs, Mended: p.mended,
	}
	for _, g := range p.gaps.spans {
		st.Missing += g.to - g.from + 1
	}
	if !p.gapAt.IsZero() {
		st.LagMS = ms(now.Sub(p.gapAt))
	}
	if p.way.told && p.way.alone {
		st.Path = "alone"
	}
	st.Drift = p.services.drift
	if p.pullErr != nil {
		st.Error = p.pullErr.Error()
	}
	return st
}

// chooseVersionLocked speaks the newest version that all who are heard
// understand. What was told in a newer one cannot be told again to who does
// not: that is left to a pull.
func (s *Session) chooseVersionLocked(now time.Time) {
	v := uint8(protocolVersion)
	for _, p := range s.peers {
		if p.up(now) {
			v = min(v, p.version)
		}
	}
	if was := uint8(s.version.Swap(uint32(v))); was > v {
		s.ringMu.Lock()
		s.ring.forget()
		s.ringMu.Unlock()
		s.log.Info("speaking an older version of the protocol, for a peer that understands no more", "version", v)
	} else if was < v {
		s.log.Info("speaking a newer version of the protocol", "version", v)
	}
}

func ms(d time.Duration) float64 { return float64(d/time.Microsecond) / 1000 }

// digestsKept bounds how far apart two nodes' clocks may be for digests to
// meet, in rounds of the digest.
const digestsKept = 6

// digests are the newest digests of one table, by horizon.
type digests [digestsKept]struct{ horizon, sum uint64 }

func (d *digests) set(horizon, sum uint64) {
	if d[0].horizon == horizon {
		d[0].sum = sum
		return
	}
	copy(d[1:], d[:digestsKept-1])
	d[0].horizon, d[0].sum = horizon, sum
}

// compare compares d and e at the newest horizon that both have.
func (d *digests) compare(e *digests) (horizon uint64, equal bool) {
	for _, x := range d {
		for _, y := range e {
			if x.horizon != 0 && x.horizon == y.horizon && x.horizon > horizon {
				horizon, equal = x.horizon, x.sum == y.sum
			}
		}
	}
	return horizon, equal
}
