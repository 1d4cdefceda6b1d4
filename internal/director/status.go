package director

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"saru/membership"
)

// A Status is what 'saru status --json' prints.
type Status struct {
	Cluster        string         `json:"cluster"`
	Node           string         `json:"node"`
	Role           string         `json:"role"`
	State          string         `json:"state"`
	Why            string         `json:"why,omitempty"`
	Master         string         `json:"master"`
	Epoch          uint64         `json:"epoch"` // term << 32 | counter: only grows
	Frozen         bool           `json:"frozen"`
	Quorum         QuorumStatus   `json:"quorum"`
	Members        []MemberStatus `json:"members"`
	Share          ShareStatus    `json:"share"`
	Shares         []OneShare     `json:"shares"` // all of them, this one first
	Filter         FilterStatus   `json:"filter"`
	Syncd          string         `json:"syncd"`
	Paths          []PathStatus   `json:"paths"`
	Engine         EngineStatus   `json:"engine"`
	Strangers      []Stranger     `json:"strangers"`  // who else claims a virtual address
	Foreigners     []Foreigner    `json:"foreigners"` // whose heartbeats come and are not acted on
	StrangerClaims uint64         `json:"stranger_claims"`
	LAN            []string       `json:"lan"`     // what is wrong with it, as far as this director can see
	Changes        []Event        `json:"changes"` // the last few of 'saru events'
	Version        string         `json:"version"`

	Protocol membership.Stats `json:"protocol"`
}

// QuorumStatus says how many voters are heard, this one included.
type QuorumStatus struct {
	Policy string `json:"policy"`
	Have   int    `json:"have"`
	Need   int    `json:"need"`
}

// MemberStatus is one director as this one sees it.
type MemberStatus struct {
	Name     string  `json:"name"`
	Addr     string  `json:"addr"`
	Role     string  `json:"role"`
	State    string  `json:"state"`
	Why      string  `json:"why,omitempty"`
	Weight   int     `json:"weight"`
	Buckets  int     `json:"buckets"`
	SilentMS float64 `json:"silent_ms"`
	Version  string  `json:"version,omitempty"`
}

// ShareStatus is this director's share.
type ShareStatus struct {
	ID        int      `json:"id"`
	Addresses []string `json:"addresses"`
	Interface string   `json:"interface,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	Mode      string   `json:"mode"`
	Target    string   `json:"target"`
	Sense     string   `json:"sense"`

	Services    []ServiceStatus `json:"services"`               // divided in a way of their own
	ServicesWhy string          `json:"services_why,omitempty"` // what keeps the share from following IPVS

	Total       int     `json:"buckets_total"`
	Buckets     int     `json:"buckets"`
	Assigned    int     `json:"assigned"`
	Fraction    float64 `json:"fraction"`
	LeaseMS     float64 `json:"lease_ms"`
	LeaseLeftMS float64 `json:"lease_left_ms"`
}

// ServiceStatus is a service that is not divided as the share is.
type ServiceStatus struct {
	Service string `json:"service"`
	Sense   string `json:"sense"`
	Why     string `json:"why"`
}

// FilterStatus is what the kernel did, in packets.
type FilterStatus struct {
	Backend   string `json:"backend"`
	Accepted  uint64 `json:"accepted_packets"`
	Dropped   uint64 `json:"dropped_packets"` // other directors', or without a lease
	Lapsed    uint64 `json:"lapsed_packets"`
	Own       uint64 `json:"own_mac_packets"`
	OwnSender string `json:"own_mac_sender,omitempty"`
	Silenced  uint64 `json:"silenced_packets"`
	Leaks     uint64 `json:"leaked_packets"` // LVS-NAT: real servers' replies to nothing that is known; dropped
	Settling  int    `json:"settling_buckets"`
	Waiting   uint64 `json:"queue_waiting_packets"` // backend nfqueue only
	Bytes     uint64 `json:"flooded_bytes"`         // all that came to the shared MAC and was judged
	Forwarded uint64 `json:"forwarded_packets"`     // mode forward only: handed to the director of their bucket
	Copied    uint64 `json:"forwarded_fragments"`   // copies of fragments
	Overruns  uint64 `json:"queue_overrun_packets"` // dropped: more than could be judged
	Intact    bool   `json:"intact"`
	Resets    uint64 `json:"resets"`
	Why       string `json:"why,omitempty"`
}

// PathStatus counts one way that heartbeats take.
type PathStatus struct {
	Name     string `json:"name"`
	Sent     uint64 `json:"sent"`
	Unsent   uint64 `json:"unsent"`
	Received uint64 `json:"received"`
	Refused  uint64 `json:"refused"`
}

// EngineStatus says how well the engine keeps its time.
type EngineStatus struct {
	Heartbeat     uint64            `json:"heartbeat"`
	WorstTickMS   float64           `json:"worst_tick_ms"`
	StandInTurns  uint64            `json:"stand_in_turns"` // done while the engine's own thread was held up
	Realtime      bool              `json:"realtime"`
	ArmErrors     uint64            `json:"arm_errors"`
	ConfirmErrors uint64            `json:"confirm_errors"`
	Drops         map[string]uint64 `json:"drops"`
}

// changesShown is how many of the last events a Status has.
const changesShown = 8

func ms(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

// status collects a Status.
func (d *daemon) status(ctx context.Context) (*Status, error) {
	s := d.settings
	st := &Status{
		Cluster: s.Cluster, Node: s.Node, Role: s.role(), Version: d.Version, Paths: []PathStatus{},
		Share:  ShareStatus{ID: s.ID, Addresses: []string{}, Interface: s.Interface, MAC: s.MAC.String(), Target: "local", Sense: s.Sense.String(), Total: s.Buckets},
		Filter: FilterStatus{Backend: s.Backend},
	}
	if s.IPVS {
		st.Share.Target = "ipvs"
	}
	if st.Share.Mode = modeFlood; s.Forward {
		st.Share.Mode = modeForward
	}
	st.Share.Addresses = vipTexts(s.VIPs)
	st.Share.Services, st.Share.ServicesWhy = serviceStatus(d.current()), d.reshaper.why()
	var snap membership.Snapshot
	addrs := map[membership.NodeID]string{}
	unfit := ""
	err := d.engine.ask(ctx, func(now time.Duration) {
		snap = d.engine.core.Snapshot(now)
		for id, w := range d.engine.ways {
			if w.addr.IsValid() {
				addrs[id] = w.addr.Addr().String()
			}
		}
		d.engineStatus(st, &snap)
		unfit = d.engine.unfit
		st.Foreigners = d.engine.foreigners.now(now)
	})
	if err != nil {
		return nil, fmt.Errorf("the engine does not answer: %w", err)
	}
	st.State, st.Why, st.Master = snap.State.String(), snap.Why, snap.Master
	st.Frozen = snap.Frozen
	st.Epoch = uint64(snap.Epoch.Term)<<32 | uint64(snap.Epoch.Counter)
	st.Share.Buckets, st.Share.Assigned = snap.Open.Len(), snap.Assigned.Len()
	st.Share.Fraction = float64(st.Share.Buckets) / float64(s.Buckets)
	st.Share.LeaseMS, st.Share.LeaseLeftMS = ms(s.Lease), ms(snap.LeaseLeft)
	d.memberStatus(st, &snap, addrs)
	d.filterStatus(st)
	if st.Why == degradedItself {
		st.Why = orElse(unfit, st.Why)
	}
	st.Strangers, st.StrangerClaims = d.strangers.now(time.Now())
	st.LAN = d.lanState.all()
	st.Changes, _ = d.engine.events.after(0, changesShown)
	return st, nil
}

func (d *daemon) engineStatus(st *Status, snap *membership.Snapshot) {
	e := d.engine
	st.Engine = EngineStatus{snap.N, ms(e.worstTick), e.standIns, e.realtime == "", e.armErrors, e.confirmErrors, map[string]uint64{}}
	for err, n := range e.drops {
		st.Engine.Drops[err.Error()] = n
	}
	for _, p := range e.paths {
		st.Paths = append(st.Paths, PathStatus{p.name, p.sent, p.unsent, p.received, p.refused})
	}
	st.Protocol, st.Syncd = snap.Stats, d.gate.told
	if d.applier != nil {
		st.Filter.Resets = d.applier.resets
	}
}

// memberStatus lists the members: this node first, then the others by name.
func (d *daemon) memberStatus(st *Status, snap *membership.Snapshot, addrs map[membership.NodeID]string) {
	gossiped := d.gossip.members()
	st.Quorum = QuorumStatus{snap.Policy, snap.Have, snap.Need}
	for i, m := range snap.Members {
		if m.Name == "" { // of another version's message only the id can be read
			m.Name = gossipName(gossiped, m.Node)
		}
		g := gossiped[m.Name]
		ms := MemberStatus{m.Name, addrs[m.Node], m.Role, m.State, m.Why, m.Weight, m.Open, ms(m.Silent), g.Version}
		if m.Name == "" {
			ms.Name = m.Node.String()
		}
		if i == 0 {
			ms.Addr, ms.Version = d.settings.Bind.Addr().String(), d.Version
		}
		delete(gossiped, m.Name)
		st.Members = append(st.Members, ms)
	}
	for _, g := range gossiped {
		st.Members = append(st.Members, MemberStatus{
			Name: g.Name, Addr: g.Addr.Addr().String(), Role: g.Role, State: "unheard", Weight: g.Weight, Version: g.Version,
			Why: "gossips but no heartbeat of it is heard; are its UDP port and its frames blocked, or is its share.id another?",
		})
	}
	slices.SortFunc(st.Members[1:], func(a, b MemberStatus) int { return cmp.Compare(a.Name, b.Name) })
}

// gossipName returns the name of a node that gossip knows, or "".
func gossipName(gossiped map[string]Peer, id membership.NodeID) string {
	for name := range gossiped {
		if membership.ID(name) == id {
			return name
		}
	}
	return ""
}

func (d *daemon) filterStatus(st *Status) {
	if d.filter == nil {
		st.Filter.Backend = "none"
		return
	}
	f, err := d.filter.Stats()
	if err != nil {
		st.Filter.Why = err.Error()
		return
	}
	o := &st.Filter
	o.Accepted, o.Dropped, o.Lapsed, o.Own, o.Silenced = f.Accepted, f.Foreign+f.Lapsed+f.Overruns, f.Lapsed, f.Own, f.Silenced
	if d.forward != nil {
		if to, err := d.forward.rules.Stats(); err != nil {
			o.Why = err.Error()
		} else {
			o.Forwarded, o.Copied = to.Forwarded, to.Copied
		}
	}
	o.Waiting, o.Overruns, o.Bytes = f.Waiting, f.Overruns, f.Bytes
	o.Leaks = f.Leaks
	o.Settling, o.Intact = f.Settling.Len(), f.Intact
	if f.OwnSender != nil {
		o.OwnSender = f.OwnSender.String()
	}
}
