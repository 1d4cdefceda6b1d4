package syncd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"saru/internal/control"
	"saru/internal/metrics"
	"saru/internal/task"
	"saru/internal/web"
	"saru/ipvs/firstpacket"
	"saru/syncproto/legacy"
	"saru/syncproto/peer"
)

// Options say how Run is run. The zero value will do.
type Options struct {
	Keep  bool   // leave the kernel's sync threads and settings in place at the end
	Ready func() // called once everything works

	Hangup <-chan os.Signal // asks to read the configuration again,
	Config string           // which is there
	Level  *slog.LevelVar   // of the log
	Debug  bool             // the level stays
}

// Run is the daemon: it mirrors until ctx ends, and leaves the kernel as it
// found it unless that is to be kept. All that can be refused is refused
// before the kernel is touched.
func Run(ctx context.Context, log *slog.Logger, s *Settings, o Options) (err error) {
	d := &daemon{}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(log, s, o.Keep); err != nil {
		return err
	}
	log.Info("start", "node", s.Node, "group", s.UDP.Group, "peers", s.UDP.Peers)
	r := &reloader{Options: o, log: log, engine: d.engine, now: s}
	r.setLevel(s.Level)
	tasks := []task.Task{d.kernel, d.engine, d.control, r}
	if d.engine.deferral != nil {
		tasks = append(tasks, d.engine.deferral)
	}
	if d.bridge != nil {
		tasks = append(tasks, d.bridge)
	}
	if d.metrics != nil {
		tasks = append(tasks, d.metrics)
	}
	if w := newWatchdog(log, d.engine); w != nil {
		tasks = append(tasks, w)
	}
	err = task.Run(ctx, o.Ready, tasks...)
	notify(log, stateStopping)
	log.Info("stop", "err", err)
	return err
}

// A daemon is what Run opened.
type daemon struct {
	control *web.Server
	udp     *peer.UDP
	metrics *web.Server
	kernel  *source
	engine  *Engine
	legacy  *legacy.Link
	bridge  *Bridge
}

// open opens everything, the kernel last. The control socket goes first, since
// whoever has it is the one syncd here.
func (d *daemon) open(log *slog.Logger, s *Settings, keep bool) (err error) {
	handler := &web.Late{}
	if d.control, err = control.Listen("syncd", s.Socket, handler); err != nil {
		return err
	}
	s.UDP.Log = log
	if d.udp, err = peer.NewUDP(s.UDP); err != nil {
		return err
	}
	d.engine = New(Config{Node: s.Node, Keys: s.Keys, Transport: d.udp, Log: log, Limit: s.Limit, Saru: s.Saru, Datagram: datagramFor(s.MTU, d.udp.Headers())})
	d.engine.SetFilter(s.Filter)
	if err := d.openLegacy(log, s.Legacy); err != nil {
		return err
	}
	if s.Metrics != "" {
		if d.metrics, err = metrics.Listen(s.Metrics, metrics.Handler("syncd", d.engine.Scrape)); err != nil {
			return err
		}
	}
	handler.Handler = d.engine.Handler()
	// Beside the socket, so that it is one for each syncd on the machine.
	state := filepath.Clean(strings.TrimSuffix(s.Socket, ".sock") + ".tap.json")
	if d.kernel, err = openSource(log, s.Source, state, keep, d.engine); err != nil {
		return err
	}
	d.engine.SetKernel(d.kernel)
	if s.Defer > 0 {
		return d.engine.deferFirst(s.Defer)
	}
	if err := firstpacket.Clean(); err != nil {
		log.Debug("look for what an earlier syncd left", "err", err)
	}
	return nil
}

// openLegacy joins directors that speak the kernel's own sync protocol.
func (d *daemon) openLegacy(log *slog.Logger, s *LegacySettings) (err error) {
	if s == nil {
		return nil
	}
	d.bridge = NewBridge(d.engine, *s)
	d.legacy, err = legacy.Open(legacy.Config{
		Interface: s.Interface, Group: s.Group, Ports: s.Ports, SyncID: s.SyncID, Version: s.Version, Log: log, Deliver: d.bridge.Heard,
	})
	d.bridge.SetLink(d.legacy)
	return err
}

func (d *daemon) close() error {
	var errs []error
	if d.engine != nil && d.engine.deferral != nil {
		errs = append(errs, d.engine.deferral.close())
	}
	if d.kernel != nil {
		errs = append(errs, d.kernel.close())
	}
	if d.legacy != nil {
		errs = append(errs, d.legacy.Close())
	}
	if d.udp != nil {
		errs = append(errs, d.udp.Close())
	}
	if d.metrics != nil {
		errs = append(errs, d.metrics.Close())
	}
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	return errors.Join(errs...)
}

// datagramFor returns the largest datagram that is not fragmented at an MTU
// of mtu bytes, 0 (the session's default) if that is 0 since no interface is
// named. The session makes none that peers do not get.
func datagramFor(mtu, headers int) int {
	if mtu == 0 {
		return 0
	}
	return max(peer.MinDatagram, min(mtu-headers, peer.MaxDatagram))
}
