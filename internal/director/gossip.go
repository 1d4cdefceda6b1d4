package director

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"saru/internal/config"
	"saru/membership"
)

// rejoinEvery is how often missing members are joined again: memberlist does
// not heal a partition by itself.
const rejoinEvery = time.Second

// A Peer is a member as gossip tells it.
type Peer struct {
	Name    string
	Addr    netip.AddrPort // of its heartbeats
	Role    string
	Weight  int
	State   string
	Version string
	Wants   string
	MAC     string // where it takes frames, in mode forward
	Flooded Flooded
}

// meta is what a node tells of itself by gossip.
type meta struct {
	Role    string `json:"role"`
	Weight  int    `json:"weight"`
	Port    uint16 `json:"port"` // of the heartbeats
	State   string `json:"state"`
	Version string `json:"version"`
	Wants   string `json:"wants,omitempty"` // the shape that its services ask for
	MAC     string `json:"mac,omitempty"`   // where it takes frames, in mode forward

	Flooded Flooded `json:"flooded,omitzero"`
}

// gossip finds the members of the cluster. It is a task.
type gossip struct {
	name   string // of this node
	log    *slog.Logger
	list   *memberlist.Memberlist
	bind   netip.AddrPort
	seeds  []netip.AddrPort
	engine *Engine
	up     chan struct{}
	events chan memberlist.NodeEvent

	mu      sync.Mutex
	own     meta
	peers   map[string]Peer
	ever    map[string]netip.AddrPort // members seen and not said farewell by
	joining map[string]bool           // addresses
}

func openGossip(log *slog.Logger, s *Settings, e *Engine, version string) (*gossip, error) {
	g := &gossip{
		name: s.Node, log: log, bind: s.Bind, engine: e, up: make(chan struct{}), events: make(chan memberlist.NodeEvent, 64),
		own:   meta{Role: s.role(), Weight: s.Weight, Port: s.Bind.Port() + 1, State: membership.Joining.String(), Version: version},
		peers: map[string]Peer{}, ever: map[string]netip.AddrPort{}, joining: map[string]bool{},
	}
	if s.Forward {
		g.own.MAC = s.MAC.String()
	}
	for _, j := range s.Join {
		if j != s.Bind {
			g.seeds = append(g.seeds, j)
		}
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = s.Node, s.Cluster
	c.BindAddr, c.BindPort = s.Bind.Addr().String(), int(s.Bind.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	// Measured with the default lease: a crash is declared in about half a
	// second. Where heartbeats are slower gossip may be, too.
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = s.Lease/3, s.Lease/6, 3
	c.TCPTimeout = 2 * time.Second
	c.DeadNodeReclaimTime = time.Second
	c.LogOutput = logLines{log}
	c.Delegate, c.Events, c.Conflict = g, g, g
	keys := s.Keys.Derive("gossip", 32)
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	c.Keyring = ring
	if g.list, err = memberlist.Create(c); err != nil {
		_, why, _ := strings.Cut(err.Error(), "listen ") // its chain is cut
		return nil, config.Bad("cluster.bind = %q: %s; free the port or choose another", s.Bind, cmp.Or(why, err.Error()))
	}
	return g, nil
}

// Ready is closed when members are looked for.
func (g *gossip) Ready() <-chan struct{} { return g.up }

func (g *gossip) String() string { return "gossip" }

// Run keeps joining who is missing until ctx ends, and tells the engine where
// members are.
func (g *gossip) Run(ctx context.Context) error {
	tick := time.NewTicker(rejoinEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	close(g.up)
	for ctx.Err() == nil {
		for _, at := range g.missing() {
			// A join may wait for a dead node's address; events, the other joins and
			// the end must not wait for all of them, one after the other.
			wg.Go(func() { g.join(at) })
		}
		select {
		case <-ctx.Done():
		case ev := <-g.events:
			g.handle(ctx, ev)
		case <-tick.C:
		}
	}
	return nil
}

// missing returns the addresses of the seeds and former members that are not
// there. They are being joined until join has returned for them.
func (g *gossip) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, a := range slices.Concat(g.seeds, values(g.ever)) {
		at := netip.AddrPortFrom(a.Addr(), a.Port()+1)
		there := slices.ContainsFunc(values(g.peers), func(p Peer) bool { return p.Addr == at })
		if text := a.String(); !there && !g.joining[text] {
			g.joining[text] = true
			out = append(out, text)
		}
	}
	return out
}

func (g *gossip) join(at string) {
	if _, err := g.list.Join([]string{at}); err != nil {
		g.log.Debug("join", "missing", at, "err", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.joining, at)
}

func values[K comparable, V any](m map[K]V) []V { return slices.Collect(maps.Values(m)) }

func (g *gossip) handle(ctx context.Context, ev memberlist.NodeEvent) {
	n := ev.Node
	if n.Name == g.name || len(n.Name) > membership.MaxName {
		return
	}
	if ev.Event == memberlist.NodeLeave {
		g.gone(n.Name)
		return
	}
	addr, _ := netip.AddrFromSlice(n.Addr)
	var m meta
	if err := json.Unmarshal(n.Meta, &m); err != nil || m.Port == 0 || !addr.Unmap().Is4() {
		g.log.Warn("a member tells nothing that can be read", "member", n.Name, "addr", addr, "err", err)
		return
	}
	at := netip.AddrPortFrom(addr.Unmap(), m.Port)
	if ev.Event == memberlist.NodeJoin {
		g.log.Info("gossip: member here", "member", n.Name, "addr", at)
	}
	g.here(n.Name, netip.AddrPortFrom(addr.Unmap(), n.Port), Peer{n.Name, at, m.Role, m.Weight, m.State, m.Version, m.Wants, m.MAC, m.Flooded})
	g.engine.post(ctx, func(time.Duration) { g.engine.learn(membership.ID(n.Name), at) })
}

// gone notes that a member is not there any more. One that did not say farewell
// is looked for. (memberlist tells its listeners of the ones as of the others.)
func (g *gossip) gone(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := g.peers[name].State == membership.Left.String()
	delete(g.peers, name)
	if left {
		delete(g.ever, name)
	}
	g.log.Info("gossip: member gone", "member", name, "left", left)
}

// maxEver bounds the former members that are looked for.
const maxEver = 4 * membership.MaxNodes

// here notes what a member tells, and where it gossips. Those that are there
// take the places of those that are gone.
func (g *gossip) here(name string, at netip.AddrPort, p Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers[name] = p
	_, known := g.ever[name]
	if !known && len(g.ever) >= maxEver {
		maps.DeleteFunc(g.ever, func(name string, _ netip.AddrPort) bool { _, there := g.peers[name]; return !there })
	}
	if known || len(g.ever) < maxEver {
		g.ever[name] = at
	}
}

// members returns the others as gossip tells them, by name.
func (g *gossip) members() map[string]Peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.peers)
}

// tell spreads this node's state.
func (g *gossip) tell(state string) { g.spread(func(m *meta) { m.State = state }) }

// NotifyConflict hears of two machines with one name. If it is this node's, the
// other sends no heartbeats while this one serves, and is known from here only.
func (g *gossip) NotifyConflict(existing, other *memberlist.Node) {
	if a, ok := netip.AddrFromSlice(other.Addr); ok && existing.Name == g.name {
		g.engine.postNow(func(time.Duration) { g.engine.foreign(nil, netip.AddrPortFrom(a.Unmap(), other.Port), "", whyClone) })
	}
}

func (g *gossip) tellWeight(weight int) { g.spread(func(m *meta) { m.Weight = weight }) }

// want spreads the shape that this node's services ask for.
func (g *gossip) want(shape string) { g.spread(func(m *meta) { m.Wants = shape }) }

// wantOther returns the directors that do not say that they want this shape.
func (g *gossip) wantOther(shape string) (names []string) {
	for _, p := range g.members() {
		if p.Role == "director" && p.Wants != shape {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// spread changes what this node tells of itself.
func (g *gossip) spread(change func(m *meta)) {
	g.mu.Lock()
	was := g.own
	change(&g.own)
	changed := g.own != was
	g.mu.Unlock()
	if changed {
		if err := g.list.UpdateNode(time.Second); err != nil {
			g.log.Debug("gossip: tell state", "err", err)
		}
	}
}

// close leaves the cluster and ends memberlist's goroutines.
func (g *gossip) close() error {
	g.tell(membership.Left.String())
	if err := g.list.Leave(500 * time.Millisecond); err != nil {
		g.log.Debug("gossip: leave", "err", err)
	}
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	return nil
}

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(limit int) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := json.Marshal(g.own)
	if err != nil || len(b) > limit {
		return nil
	}
	return b
}

// NotifyMsg, GetBroadcasts, LocalState and MergeRemoteState implement
// memberlist.Delegate; gossip carries nothing but metadata.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts has none.
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is empty.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState ignores what is not ours.
func (g *gossip) MergeRemoteState([]byte, bool) {}

// NotifyJoin, NotifyLeave and NotifyUpdate implement memberlist.EventDelegate.
// They are called under memberlist's lock, so they only queue; a full queue
// drops, and heartbeats teach the address as well.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.queue(memberlist.NodeJoin, n) }

// NotifyLeave queues a leave.
func (g *gossip) NotifyLeave(n *memberlist.Node) { g.queue(memberlist.NodeLeave, n) }

// NotifyUpdate queues a change of metadata.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.queue(memberlist.NodeUpdate, n) }

func (g *gossip) queue(t memberlist.NodeEventType, n *memberlist.Node) {
	copied := *n
	copied.Meta = bytes.Clone(n.Meta)
	select {
	case g.events <- memberlist.NodeEvent{Event: t, Node: &copied}:
	default:
	}
}

// logLines writes memberlist's log to ours, at level debug.
type logLines struct{ log *slog.Logger }

func (l logLines) Write(b []byte) (int, error) {
	l.log.Debug("memberlist", "line", string(bytes.TrimSpace(b)))
	return len(b), nil
}
