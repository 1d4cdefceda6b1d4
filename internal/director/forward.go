package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"saru/internal/config"
	"saru/membership"
	"saru/partition"
	"saru/partition/forward"
	"saru/partition/nft"
)

// fenceEvery is how often the fence is looked at, and the others' MACs.
const fenceEvery = time.Second

// A forwarding has frames handed to the directors that serve their buckets, in
// mode forward. It is a task.
type forwarding struct {
	log    *slog.Logger
	lease  time.Duration
	rules  *forward.Forwarder
	gossip func() map[string]Peer
	up     chan struct{}
	change chan struct{}
	macs   map[string]nft.MAC // as last told: gossip may lose whom heartbeats do not

	mu  sync.Mutex
	now []membership.Holding // this node first
}

func openForwarding(log *slog.Logger, s *Settings, gossip func() map[string]Peer) (*forwarding, error) {
	rules, err := forward.Open(s.filterConfig())
	if err != nil {
		return nil, config.Bad("share.mode = %q: %v", modeForward, err)
	}
	return &forwarding{
		log: log, lease: s.Lease, rules: rules, gossip: gossip, up: make(chan struct{}), change: make(chan struct{}, 1),
		macs: map[string]nft.MAC{},
	}, nil
}

// holdings takes note of who serves what. It never waits.
func (f *forwarding) holdings(all []membership.Holding) {
	f.mu.Lock()
	f.now = append(f.now[:0], all...)
	f.mu.Unlock()
	select {
	case f.change <- struct{}{}:
	default:
	}
}

// Ready is closed when changes are followed.
func (f *forwarding) Ready() <-chan struct{} { return f.up }

func (f *forwarding) String() string { return "forwarding" }

// Run follows the changes until ctx ends.
func (f *forwarding) Run(ctx context.Context) error {
	tick := time.NewTicker(fenceEvery)
	defer tick.Stop()
	close(f.up)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.change:
		case <-tick.C:
			f.look()
		}
		if err := f.rules.Set(f.routes()); err != nil {
			f.log.Error("packets of others' buckets are not handed on as they should be", "err", err)
		}
	}
}

// look puts back what somebody has removed, and says so.
func (f *forwarding) look() {
	stood, err := f.rules.Keep()
	if _, gone := f.rules.Stats(); gone != nil {
		err = errors.Join(err, gone) // the next Set puts it back
	}
	if !stood || err != nil {
		f.log.Warn("forwarding was changed by somebody else; it is put back", "fence", stood, "err", err)
	}
}

func (f *forwarding) routes() nft.Routes {
	members := f.gossip()
	for name, p := range members {
		if mac, err := net.ParseMAC(p.MAC); err == nil && len(mac) == 6 {
			f.macs[name] = nft.MAC(mac)
		}
	}
	f.mu.Lock()
	all := slices.Clone(f.now)
	f.mu.Unlock()
	maps.DeleteFunc(f.macs, func(name string, _ nft.MAC) bool {
		_, gossips := members[name]
		return !gossips && !slices.ContainsFunc(all, func(h membership.Holding) bool { return h.Name == name })
	})
	if len(all) == 0 {
		return nft.Routes{}
	}
	return f.to(all[0].Open, all[0].Rest, all[1:])
}

func (f *forwarding) to(open, rest partition.Set, others []membership.Holding) nft.Routes {
	var directors []forward.Director
	for _, h := range others {
		if mac, known := f.macs[h.Name]; known {
			directors = append(directors, forward.Director{MAC: mac, Open: h.Open, Rest: h.Rest})
		}
	}
	return forward.RoutesOf(open, rest, directors)
}

// replanBoth divides flows in another way in a filter, and then in what stands
// before it. If only the filter could be changed, the share has to stay closed as
// when that is not known: the others still take this director for one that
// divides as before.
func replanBoth(filter, forward func(partition.Plan) error) func(partition.Plan) error {
	return func(p partition.Plan) error {
		if err := filter(p); err != nil {
			return err
		}
		if err := forward(p); err != nil {
			return fmt.Errorf("%w: %w", nft.ErrUnknown, err)
		}
		return nil
	}
}

// close hands everything to the others for a lease more, since the LAN's caches
// name this director until they have heard of the next master; then it takes
// the rules away. It comes after Run.
func (f *forwarding) close() error {
	f.mu.Lock()
	all := slices.Clone(f.now)
	f.mu.Unlock()
	var err error
	if len(all) > 1 {
		err = f.rules.Set(f.to(partition.Set{}, partition.Set{}, all[1:]))
		time.Sleep(f.lease)
	}
	return errors.Join(err, f.rules.Close())
}
