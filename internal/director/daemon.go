package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"saru/internal/config"
	"saru/internal/control"
	"saru/internal/metrics"
	"saru/internal/task"
	"saru/internal/web"
	"saru/ipvs"
	"saru/membership"
	"saru/partition"
	"saru/partition/forward"
	"saru/partition/lan"
	"saru/partition/nft"
)

// announceEvery is how often the master tells the LAN the shared MAC, so that
// entries with a director's own MAC do not live for hours.
const announceEvery = 30 * time.Second

// How often a new master announces itself again, and after how long each.
const (
	announceAgain      = 3
	announceAgainAfter = 100 * time.Millisecond
)

// Options is what Run needs besides the configuration.
type Options struct {
	Log     *slog.Logger
	Level   *slog.LevelVar // of Log
	Debug   bool           // log more, whatever the configuration says
	Path    string         // of the configuration, to be read again
	Version string
	Keep    bool   // leave the kernel as it is at the end
	Ready   func() // is called once everything works
}

// A daemon is what Run opened.
type daemon struct {
	Options
	settings *Settings
	file     File // as last read; the reload's alone
	log      *slog.Logger

	control  *web.Server
	metrics  *web.Server
	paths    []*path
	engine   *Engine
	gossip   *gossip
	filter   Filter // nil without a share
	applier  *applier
	lan      *lan.LAN
	forward  *forwarding // nil but in mode forward
	inside   *lan.LAN    // LVS-NAT only
	gate     *gate
	barriers *barriers
	pinger   *pinger
	reshaper *reshaper // nil where no services are read
	shape    atomic.Pointer[Settings]
	lead     chan struct{}
	hangup   chan os.Signal

	strangers strangers
	lanState  lanState
}

// current returns the settings, with the services that the share is divided by
// now.
func (d *daemon) current() *Settings { return d.shape.Load() }

// runShare is Run for one share.
func runShare(ctx context.Context, s *Settings, o Options) (err error) {
	log := o.Log
	d := &daemon{settings: s, file: s.file, Options: o, log: log, lead: make(chan struct{}, 1), hangup: make(chan os.Signal, 1)}
	signal.Notify(d.hangup, syscall.SIGHUP) // one that comes while all is opened waits
	defer signal.Stop(d.hangup)
	d.Level.Set(d.level(s.Debug))
	d.watchServices()
	defer func() { err = errors.Join(err, d.close(o.Keep)) }()
	if err := d.open(ctx); err != nil {
		return err
	}
	log.Info("start", "node", s.Node, "cluster", s.Cluster, "version", o.Version, "share", vipList(s.VIPs), "lease", s.Lease)
	d.warnOfObstacles()
	d.engine.events.note(eventStart, "saru %s starts", o.Version)
	if len(s.VIPs) == 0 {
		log.Info("no addresses are configured in [share]: membership only")
	}
	// The other tasks live on until the engine has given the share away.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	engine := stopping{d.engine, stop}
	tasks := []task.Task{engine, d.gossip, d.gate, d.pinger, d.control, task.Func{Name: "state to gossip", Do: d.tellState}, task.Func{Name: "reload", Do: d.watchReload}, task.Func{Name: "fitness", Do: d.watchFitness}, task.Func{Name: "watchdog", Do: d.watchdog}}
	for _, s := range standIns(d.engine) {
		tasks = append(tasks, s)
	}
	if d.metrics != nil {
		tasks = append(tasks, d.metrics)
	}
	if d.barriers != nil {
		tasks = append(tasks, d.barriers)
	}
	if d.reshaper != nil {
		tasks = append(tasks, task.Func{Name: "services", Do: d.reshaper.Run})
	}
	if d.filter != nil {
		if judge, is := d.filter.(task.Task); is {
			tasks = append(tasks, judge)
		}
		if d.forward != nil {
			tasks = append(tasks, d.forward)
		}
		for _, l := range d.lans() {
			tasks = append(tasks, l)
		}
		if s.Inside != nil && s.Inside.Interface != s.Interface {
			tasks = append(tasks, &carrier{s.Inside.Interface, d.engine, make(chan struct{})})
		}
		tasks = append(tasks, d.applier, &carrier{s.Interface, d.engine, make(chan struct{})}, task.Func{Name: "announcements", Do: d.announce}, task.Func{Name: "answers", Do: d.watchAnswers})
		if !s.Forward && s.Backend == backendRules {
			tasks = append(tasks, task.Func{Name: "floods", Do: d.watchFlood})
		}
	}
	defer context.AfterFunc(ctx, func() { d.tellSystemd(systemd.SdNotifyStopping) })()
	err = task.Run(inner, o.Ready, tasks...)
	log.Info("stop", "err", err)
	return err
}

// stopping is a task that ends all others when it ends.
type stopping struct {
	task.Task
	stop context.CancelFunc
}

func (s stopping) Run(ctx context.Context) error {
	defer s.stop()
	return s.Task.Run(ctx)
}

// Possible says whether this kernel can do what s asks for, as bad input if it
// cannot. It changes nothing.
func Possible(s *Settings) error {
	if len(s.VIPs) == 0 {
		return nil
	}
	if err := probeFilter(s.Backend); err != nil {
		return err
	}
	if s.Forward {
		if err := forward.Probe(); err != nil {
			return config.Bad("share.mode = %q: %v", modeForward, err)
		}
	}
	if !s.IPVS {
		return nil
	}
	if err := notSloppy(ipvsSysctls); err != nil {
		return err
	}
	if err := s.forwards(); err != nil {
		return err
	}
	c, err := ipvs.Dial()
	if errors.Is(err, ipvs.ErrNotSupported) {
		return config.Bad("share.target = \"ipvs\": this kernel has no IPVS; load ip_vs, or use \"local\" if the directors answer themselves")
	}
	if err != nil {
		return fmt.Errorf("ask the kernel for IPVS: %w", err)
	}
	return c.Close()
}

// open opens everything, the kernel last. The control socket goes first, since
// whoever has it is the one saru here.
func (d *daemon) open(ctx context.Context) (err error) {
	s := d.settings
	handler := &web.Late{}
	if d.control, err = control.Listen("saru", s.Socket, handler); err != nil {
		return err
	}
	if s.Metrics != "" {
		if d.metrics, err = metrics.Listen(s.Metrics, metrics.Handler("saru", d.scrape)); err != nil {
			return err
		}
	}
	udp, err := openUDP(s.Bind, s.Keys)
	if err != nil {
		return err
	}
	d.paths = append(d.paths, udp)
	if group, err := openGroup(s.Bind, groupOf(membership.ClusterID(s.Cluster)), s.Keys); err == nil {
		d.paths = append(d.paths, group)
	} else {
		d.log.Warn("heartbeats go without multicast", "err", err)
	}
	if len(s.VIPs) > 0 {
		if err := d.openShare(); err != nil {
			return err
		}
	}
	if d.engine, err = newEngine(d.log, d.current(), ctx, d.filter, d.paths); err != nil {
		return err
	}
	d.engine.onLead = func() {
		select {
		case d.lead <- struct{}{}:
		default:
		}
	}
	if d.forward != nil {
		d.engine.onHoldings = d.forward.holdings
	}
	if d.filter != nil {
		d.applier = newApplier(d.log, d.filter, s.IPVS, d.engine)
		d.engine.applier = d.applier
	}
	if s.IPVS && len(s.VIPs) > 0 {
		d.barriers = newBarriers(d.log, s.Syncd, func(ctx context.Context, token uint64) {
			d.engine.post(ctx, func(now time.Duration) { d.engine.core.BarrierDone(now, token) })
		})
		d.engine.barriers = d.barriers
	}
	d.gate = newGate(d.engine, s.Syncd, s.Delay)
	if d.pinger, err = openPinger(d.log, s, d.engine); err != nil {
		return err
	}
	if d.gossip, err = openGossip(d.log, s, d.engine, d.Version); err != nil {
		return err
	}
	handler.Handler = d.handler()
	return nil
}

// openShare puts the closed table in place (H1), then the addresses.
func (d *daemon) openShare() (err error) {
	s := d.settings
	ifi, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", s.Interface, err)
	}
	to := s.MAC
	if s.Forward {
		to = broadcast
	}
	frames, err := openFrames(ifi, to, s.Keys)
	if err != nil {
		return err
	}
	d.paths = append(d.paths, frames)
	d.filter, err = openFilter(d.current())
	if err != nil {
		return config.Bad("%v", err)
	}
	if d.reshaper != nil {
		d.reshaper.replan = d.filter.Replan
	}
	if s.Forward {
		members := func() map[string]Peer { return d.gossip.members() }
		if d.forward, err = openForwarding(d.log, d.current(), members); err != nil {
			return err
		}
		if d.reshaper != nil {
			d.reshaper.replan = replanBoth(d.filter.Replan, d.forward.rules.Replan)
		}
	}
	if d.lan, err = d.openLAN(s.Interface, s.VIPs, s.MAC, ".lan.json"); err != nil || s.Inside == nil {
		return err
	}
	in := s.Inside
	d.inside, err = d.openLAN(in.Interface, partition.Hosts(in.Address), in.MAC, ".inside.json")
	return err
}

// openLAN takes this director's place on a LAN; state names the file of what
// is to be taken back.
func (d *daemon) openLAN(device string, addresses []netip.Prefix, mac net.HardwareAddr, state string) (*lan.LAN, error) {
	return lan.Open(lan.Config{
		Interface: device, VIPs: addresses, MAC: mac, Own: d.settings.Forward,
		NoRedirects: d.settings.Inside != nil && d.settings.Inside.Interface == d.settings.Interface,
		State:       filepath.Clean(strings.TrimSuffix(d.settings.Socket, ".sock") + state),
		Answer:      func(netip.Addr) bool { return d.engine.master.Load() },
		Claimed:     d.stranger,
		Changed:     func(what string) { d.log.Warn("somebody changed a sysctl; it is put back", "what", what) },
	})
}

// warnOfObstacles logs what in other people's rules drops the share's packets.
func (d *daemon) warnOfObstacles() {
	if d.filter == nil {
		return
	}
	all, err := nft.Obstacles(ownTables, d.settings.Inside != nil)
	if err != nil {
		d.log.Warn("other people's rules cannot be read", "err", err)
	}
	for _, o := range all {
		d.log.Warn("a rule of somebody else's is in the way", "where", o.Where, "what", o.What)
	}
}

// lans are the director's places on its LANs.
func (d *daemon) lans() (all []*lan.LAN) {
	for _, l := range []*lan.LAN{d.inside, d.lan} {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// announce tells the LAN the MAC of the virtual addresses while this node is
// the master. A frame may be lost, and whoever missed it would send to the
// master before for long: so a new master says it some times.
func (d *daemon) announce(ctx context.Context) error {
	next := time.NewTimer(announceEvery)
	defer next.Stop()
	again := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.lead:
			again = announceAgain
		case <-next.C:
		}
		if d.engine.master.Load() {
			for _, l := range d.lans() {
				if err := l.Announce(); err != nil {
					d.log.Warn("announce the virtual addresses", "on", l.String(), "err", err)
				}
			}
		}
		if again--; again >= 0 {
			next.Reset(announceAgainAfter)
		} else {
			next.Reset(announceEvery)
		}
	}
}

// tellState spreads this node's state by gossip, for status elsewhere.
func (d *daemon) tellState(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		state := ""
		if err := d.engine.ask(ctx, func(time.Duration) { state = d.engine.core.State().String() }); err != nil {
			return nil // only when ctx ended
		}
		d.gossip.tell(state)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// close takes everything back: the addresses first, the fence after them.
func (d *daemon) close(keep bool) error {
	var errs []error
	if d.gossip != nil {
		errs = append(errs, d.gossip.close())
	}
	for _, l := range d.lans() {
		if !keep {
			errs = append(errs, l.Close())
		}
	}
	if d.filter != nil && !keep {
		errs = append(errs, d.filter.Close())
	}
	if d.forward != nil && !keep {
		errs = append(errs, d.forward.close())
	}
	if d.pinger != nil {
		errs = append(errs, d.pinger.close())
	}
	for _, p := range d.paths {
		errs = append(errs, p.close())
	}
	if d.engine != nil {
		errs = append(errs, d.engine.close())
	}
	if d.metrics != nil {
		errs = append(errs, d.metrics.Close())
	}
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
