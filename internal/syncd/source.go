package syncd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/config"
	"saru/ipvs/usersync"
)

// Values of kernel.source.
const (
	SourceAuto   = "auto"   // the module while it is loaded, else the sync threads
	SourceModule = "module" // the module alone
	SourceDaemon = "daemon" // the kernel's sync threads alone
)

const (
	// switchLimit is how long Inject waits for another kernel when one is
	// going away.
	switchLimit = 5 * time.Second
	// tapAgain is how long to wait after a tap that could not be opened.
	tapAgain = 5 * time.Second
)

// A source is the Kernel of an Engine: the module or the tap, changing between
// them as the module is loaded and unloaded. It is a task.
//
// No connection is lost in a change, for of two kernels that hear one begins
// before the other is heard out, and then mirror and kernel are compared:
//
//	tap -> module   listen to events, take no more records of the tap, dump
//	module -> tap   start the tap, read /proc for what came between
type source struct {
	log     *slog.Logger
	mode    string
	engine  *Engine
	openTap func() (*tapKernel, error)
	watcher *usersync.Watcher // nil if the module is not wanted

	now atomic.Pointer[active]
	up  chan struct{}
}

// active is the kernel in use: module, tap, or neither (absent).
type active struct {
	Kernel
	module *moduleKernel
	tap    *tapKernel
	before KernelStats   // of those before it
	over   chan struct{} // closed when another one took its place
}

// openSource opens the kernel that mode names; stateFile and keep are for the
// tap.
func openSource(log *slog.Logger, mode, stateFile string, keep bool, engine *Engine) (*source, error) {
	s := &source{log: log, mode: mode, engine: engine, up: make(chan struct{})}
	s.openTap = func() (*tapKernel, error) { return openTap(log, stateFile, keep, s.captured) }
	if mode == SourceDaemon {
		return s, s.useTap()
	}
	var err error
	if s.watcher, err = usersync.OpenWatcher(); err != nil {
		return nil, err
	}
	err = s.useModule()
	switch {
	case err == nil:
	case mode == SourceModule:
		err = unavailable(err)
	default:
		log.Info("the kernel's sync threads are the source", "why", err)
		err = s.useTap()
	}
	if err != nil {
		return nil, errors.Join(err, s.watcher.Close())
	}
	return s, nil
}

// unavailable says that source = "module" cannot be had.
func unavailable(err error) error {
	if errors.Is(err, usersync.ErrNotLoaded) || errors.Is(err, usersync.ErrVersion) {
		return config.Bad("kernel.source = \"module\": %v; or use \"auto\"", err)
	}
	return err
}

// change puts k in the place of the kernel in use. One goroutine calls it.
func (s *source) change(k *active) {
	k.over = make(chan struct{})
	old := s.now.Load()
	if old != nil {
		k.before = old.sum()
	}
	s.now.Store(k)
	if old != nil {
		close(old.over)
	}
}

// sum returns the counters of this kernel and those before it.
func (a *active) sum() KernelStats {
	st := a.Stats()
	st.Captured += a.before.Captured
	st.Injected += a.before.Injected
	st.Drops += a.before.Drops
	st.Beats += a.before.Beats
	if st.Malformed == nil {
		st.Malformed = map[string]uint64{}
	}
	for why, n := range a.before.Malformed {
		st.Malformed[why] += n
	}
	return st
}

func (s *source) useModule() error {
	m, err := openModule(s.log, s.engine)
	if err == nil {
		s.change(&active{Kernel: m, module: m})
	}
	return err
}

func (s *source) useTap() error {
	t, err := s.openTap()
	if err == nil {
		s.change(&active{Kernel: t, tap: t})
	}
	return err
}

func (s *source) useNothing(why string) { s.change(&active{Kernel: absent{why}}) }

// captured hands on what the tap tells, unless the module tells it.
func (s *source) captured(c *conntable.Connection) {
	if a := s.now.Load(); a == nil || a.module == nil {
		s.engine.Captured(c)
	}
}

// Run hears the kernel until ctx ends.
func (s *source) Run(ctx context.Context) error {
	for first := true; ctx.Err() == nil; first = false {
		var err error
		switch a := s.now.Load(); {
		case a.module != nil:
			err = s.runModule(ctx, a.module, !first)
		case a.tap != nil:
			err = s.runTap(ctx, a.tap, !first)
		default:
			err = s.wait(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Ready is closed when the first kernel works.
func (s *source) Ready() <-chan struct{} { return s.up }

func (s *source) String() string { return "kernel" }

func (s *source) ready() {
	select {
	case <-s.up:
	default:
		close(s.up)
	}
}

// runModule hears the module until ctx ends or it is unloaded. Then the next
// kernel is in use.
func (s *source) runModule(ctx context.Context, m *moduleKernel, mark bool) error {
	s.log.Info("the kernel module is the source")
	s.ready()
	err := m.Run(ctx, mark)
	if errors.Is(err, usersync.ErrNotLoaded) {
		s.log.Warn("the kernel module was unloaded", "source", s.mode)
		err = s.withoutModule()
	}
	if s.now.Load().module != m {
		err = errors.Join(err, m.close())
	}
	return err
}

func (s *source) withoutModule() error {
	if s.mode == SourceModule {
		s.useNothing("the kernel module ip_vs_user_sync is not loaded; \"modprobe ip_vs_user_sync\" loads it")
		return nil
	}
	if err := s.useTap(); err != nil {
		s.log.Error("the kernel's sync threads cannot be used", "err", err)
		s.useNothing(fmt.Sprintf("the kernel module is not loaded, and the sync threads cannot be used: %v", err))
	}
	return nil
}

// runTap hears the tap until ctx ends, it fails, or the module was loaded.
// Then the module is in use.
func (s *source) runTap(ctx context.Context, t *tapKernel, gap bool) error {
	g, tctx := errgroup.WithContext(ctx)
	tctx, stop := context.WithCancel(tctx)
	defer stop()
	g.Go(func() error { return t.tap.Run(tctx) })
	g.Go(func() error {
		select {
		case <-t.tap.Ready():
			s.ready()
		case <-tctx.Done():
		}
		return nil
	})
	g.Go(func() error {
		if gap {
			s.fillGap(tctx, t)
		}
		return nil
	})
	if s.watcher != nil {
		g.Go(func() error {
			defer stop()
			return s.awaitModule(tctx)
		})
	}
	err := g.Wait()
	if a := s.now.Load(); a.tap != t {
		err = errors.Join(err, t.close())
	}
	return err
}

// awaitModule returns when the module is in use, or ctx ended.
func (s *source) awaitModule(ctx context.Context) error {
	for {
		if err := s.watcher.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		err := s.useModule()
		if err == nil {
			return nil
		}
		s.log.Warn("the kernel module was loaded but cannot be used", "err", err)
	}
}

// wait waits for the module, and under "auto" tries the tap again.
func (s *source) wait(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, tapAgain)
	defer stop()
	if err := s.awaitModule(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil && s.mode == SourceAuto {
		if err := s.useTap(); err != nil {
			s.log.Debug("the kernel's sync threads cannot be used", "err", err)
		}
	}
	return nil
}

// fillGap tells the peers of connections that were made while neither module
// nor tap heard.
func (s *source) fillGap(ctx context.Context, t *tapKernel) {
	found := 0
	err := t.Entries(func() error { return ctx.Err() }, func(k *Entry) {
		var r conntable.Record
		if k.Synced || s.engine.table.Lookup(k.Key, &r) {
			return
		}
		found++
		s.engine.Captured(&k.Connection)
	})
	if err != nil && ctx.Err() == nil {
		s.log.Warn("read the kernel's table after the module was unloaded", "err", err)
		return
	}
	s.log.Info("read the kernel's table after the module was unloaded", "news", found)
}

// close closes what is in use. Run must have returned.
func (s *source) close() error {
	var errs []error
	if a := s.now.Load(); a != nil && a.module != nil {
		errs = append(errs, a.module.close())
	} else if a != nil && a.tap != nil {
		errs = append(errs, a.tap.close())
	}
	if s.watcher != nil {
		errs = append(errs, s.watcher.Close())
	}
	return errors.Join(errs...)
}

// Inject gives conns to the kernel in use; if that goes away meanwhile, to the
// next one.
func (s *source) Inject(conns []conntable.Connection) error {
	return s.do(func(k Kernel) error { return k.Inject(conns) })
}

// Delete is Inject for a deletion.
func (s *source) Delete(c conntable.Connection) error {
	return s.do(func(k Kernel) error { return k.Delete(c) })
}

// Settle waits for the kernel in use. One that goes away does all that it was
// given before (ipvs.Tap.Close).
func (s *source) Settle(ctx context.Context) error { return s.now.Load().Settle(ctx) }

func (s *source) Lost() uint64 { return s.now.Load().Lost() }

func (s *source) do(what func(Kernel) error) error {
	timer := time.NewTimer(switchLimit)
	defer timer.Stop()
	for {
		a := s.now.Load()
		err := what(a)
		if err == nil || a.module == nil && s.now.Load() == a {
			return err
		}
		if a.module != nil && !errors.Is(err, usersync.ErrNotLoaded) {
			return err
		}
		select {
		case <-a.over:
		case <-timer.C:
			return err
		}
	}
}

// Entries reads the table of the kernel in use.
func (s *source) Entries(pace func() error, fn func(*Entry)) error {
	return s.now.Load().Entries(pace, fn)
}

// Services tells what IPVS is configured for.
func (s *source) Services() (Services, error) { return s.now.Load().Services() }

// Stats returns the state of the kernel in use, and the counters of all so far.
func (s *source) Stats() KernelStats { return s.now.Load().sum() }

// absent is the Kernel while there is none.
type absent struct{ why string }

var errAbsent = errors.New("there is neither the kernel module nor the tap")

func (a absent) Inject([]conntable.Connection) error { return errAbsent }

func (a absent) Delete(conntable.Connection) error { return errAbsent }

func (a absent) Settle(context.Context) error { return nil } // nothing is on its way

func (a absent) Lost() uint64 { return 0 }

func (a absent) Entries(func() error, func(*Entry)) error { return errAbsent }

func (a absent) Services() (Services, error) { return Services{}, errAbsent }

func (a absent) Stats() KernelStats { return KernelStats{Source: "none", Degraded: a.why} }
