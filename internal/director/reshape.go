package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"saru/conntable"
	"saru/ipvs"
	"saru/membership"
	"saru/partition"
	"saru/partition/nft"
)

const (
	// readServicesEvery is how often IPVS is asked for its services.
	readServicesEvery = time.Second
	// closedWithin bounds how long a share may take to close for another shape.
	closedWithin = 30 * time.Second
)

// A reshaper divides the share anew when the services in IPVS ask for it. A
// bucket is other packets then, so two directors of different shapes must not
// serve at once: a director changes only when all others want the same, closes,
// replaces its table and begins like one that has just started.
type reshaper struct {
	d       *daemon
	log     *slog.Logger
	read    func() ([]offered, error)
	replan  func(partition.Plan) error
	want    func(shape string)          // tells the others
	differ  func(shape string) []string // the directors that want another
	stuck   *Settings                   // a change that closed the share and could not be made: it is made first
	mu      sync.Mutex
	differs []string // directors whose services ask for another shape
	broken  error    // why the services could not be read
}

// readServices asks the kernel: for real servers' ports too if those matter.
func readServices(ports bool) (all []offered, err error) {
	c, err := ipvs.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	services, err := c.Services()
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		v := offered{Service: s}
		if ports {
			dests, err := c.Dests(s)
			if err != nil {
				return nil, err
			}
			for _, d := range dests {
				if d.Forward&conntable.FlagFwdMask == conntable.FlagFwdMasq && !slices.Contains(v.ports, d.Addr.Port()) {
					v.ports = append(v.ports, d.Addr.Port())
				}
			}
		}
		all = append(all, v)
	}
	return all, nil
}

// watchServices reads the services that the share is divided by from the
// start, and has them watched.
func (d *daemon) watchServices() {
	d.shape.Store(d.settings)
	if !d.settings.IPVS || len(d.settings.VIPs) == 0 {
		return
	}
	nat := d.settings.Inside != nil
	d.reshaper = &reshaper{d: d, log: d.log, read: func() ([]offered, error) { return readServices(nat) }}
	d.reshaper.want = func(shape string) { d.gossip.want(shape) }
	d.reshaper.differ = func(shape string) []string { return d.gossip.wantOther(shape) }
	services, err := d.reshaper.read()
	if err != nil {
		d.reshaper.note(nil, err)
		return
	}
	s := d.settings.follow(services)
	d.shape.Store(s)
	d.reshaper.tell(s.Services)
}

// tell logs how services are divided.
func (r *reshaper) tell(services []partition.Service) {
	for _, s := range services {
		r.log.Info("divided in a way of its own", "service", s.String(), "by", s.Division.String(), "why", s.Why)
	}
}

// Run watches the services until ctx ends.
func (r *reshaper) Run(ctx context.Context) error {
	tick := time.NewTicker(readServicesEvery)
	defer tick.Stop()
	for {
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads the services, tells what shape they ask for, and changes to it
// when all others ask for it too.
func (r *reshaper) look(ctx context.Context) error {
	if r.d.engine.leave.Err() != nil {
		return nil // the share is being given away
	}
	if r.stuck != nil {
		return r.change(ctx, r.stuck)
	}
	now := r.d.current()
	services, err := r.read()
	if err != nil {
		r.note(nil, err)
		return nil // the shape stays until they can be read
	}
	next := now.follow(services)
	shape := next.Shape()
	r.want(shapeText(shape))
	differs := r.differ(shapeText(shape))
	r.note(differs, nil)
	if shape == now.Shape() || len(differs) > 0 {
		return nil
	}
	return r.change(ctx, next)
}

func (r *reshaper) note(differs []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.differs, differs) && len(differs) > 0 {
		r.log.Warn("other directors' virtual services ask for another division of the share, which stays as it is until all are alike", "directors", differs)
	}
	if err != nil && r.broken == nil {
		r.log.Warn("the virtual services cannot be read; the share stays divided as it is", "err", err)
	}
	r.differs, r.broken = differs, err
}

// why says what keeps the shape from following the services, or "".
func (r *reshaper) why() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.broken != nil:
		return "the virtual services cannot be read: " + r.broken.Error()
	case len(r.differs) > 0:
		return "the virtual services of " + strings.Join(r.differs, ", ") + " ask for another division; make them alike"
	}
	return ""
}

// change closes, replaces the table and begins anew.
func (r *reshaper) change(ctx context.Context, next *Settings) error {
	start := time.Now()
	r.log.Info("closing, to divide the share as the virtual services ask")
	e := r.d.engine
	if err := e.hold(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		r.log.Error("the share did not close for another division; it is tried again", "err", err)
		return e.ask(ctx, func(now time.Duration) { e.release(now) })
	}
	r.stuck = nil
	if err := r.replan(next.Plan()); errors.Is(err, nft.ErrUnknown) {
		// Whichever division the kernel has, the share stays closed until it
		// is known.
		r.stuck = next
		r.log.Error("whether the share is divided anew is not known; it stays closed until it is", "err", err)
		return nil
	} else if err != nil {
		r.log.Error("the share cannot be divided anew; it stays as it is", "err", err)
		return e.ask(ctx, func(now time.Duration) { e.release(now) })
	}
	r.d.shape.Store(next)
	r.tell(next.Services)
	shape := next.Shape()
	err := e.ask(ctx, func(now time.Duration) { e.rebirth(now, shape) })
	r.log.Info("the share is divided anew, as the virtual services ask", "took", time.Since(start), "services", len(next.Services))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// setLink tells the core of an interface's link, unless the share is held
// closed. Under LVS-NAT both LANs count: without the inside one replies would
// be lost.
func (e *Engine) setLink(now time.Duration, name string, up bool) {
	if up {
		delete(e.noLink, name)
	} else {
		e.noLink[name] = true
	}
	if !e.held {
		e.core.SetLink(now, len(e.noLink) == 0)
	}
}

var errNotClosed = fmt.Errorf("buckets are still open after %v", closedWithin)

// hold closes the share, and returns when the kernel has.
func (e *Engine) hold(ctx context.Context) error {
	limit := time.Now().Add(closedWithin)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		closed := false
		err := e.ask(ctx, func(now time.Duration) {
			if !e.held {
				e.held = true
				e.core.SetLink(now, false)
				return
			}
			closed = e.core.Closed()
		})
		switch {
		case err != nil:
			return err
		case closed:
			return nil
		case time.Now().After(limit):
			return errNotClosed
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release ends hold.
func (e *Engine) release(now time.Duration) {
	e.held = false
	e.core.SetLink(now, len(e.noLink) == 0)
}

// rebirth begins a new life with another shape, of which nothing is open.
func (e *Engine) rebirth(now time.Duration, shape uint64) {
	drained, frozen := e.core.Draining(), e.core.Frozen()
	own := e.core.Snapshot(now)
	e.lives += own.N
	e.config.Incarnation, e.config.Shape = newIncarnation(), shape
	e.config.Weight = uint16(own.Members[0].Weight) // it may have been changed since
	e.core = membership.New(e.config, now)
	e.core.Drain(now, drained)
	if frozen {
		e.core.Freeze(now, true)
	}
	e.release(now)
	if e.leave.Err() != nil {
		e.core.Leave(now)
	}
}

func shapeText(shape uint64) string { return fmt.Sprintf("%016x", shape) }
