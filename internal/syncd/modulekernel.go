package syncd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/task"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// A moduleKernel is the Kernel behind the module ip_vs_user_sync.
//
// It injects under the module's guard: an entry that a packet has touched has
// another packet count than the 0 that injection gives it, and is refused. Then
// the engine decides by the time of that packet whether the entry is newer.
type moduleKernel struct {
	log      *slog.Logger
	engine   *Engine
	client   *usersync.Client
	listener *usersync.Listener
	lister

	lost     chan error // has one while the mirror may lack events
	repaired atomic.Bool

	captured, injected, yielded, contested, refused, losses atomic.Uint64
}

// openModule connects to the module. From its return on events are queued for
// Run. The error is usersync.ErrNotLoaded or ErrVersion if it is not there or
// not ours.
func openModule(log *slog.Logger, engine *Engine) (*moduleKernel, error) {
	k := &moduleKernel{log: log, engine: engine, lost: make(chan error, 1)}
	k.repaired.Store(true)
	var err error
	if k.client, err = usersync.Dial(); err != nil {
		return nil, err
	}
	if k.lister.client, err = ipvs.Dial(); err != nil {
		return nil, errors.Join(err, k.client.Close())
	}
	k.listener, err = usersync.Listen(usersync.Handler{Event: k.event, Lost: k.lose})
	if err != nil {
		return nil, errors.Join(err, k.lister.client.Close(), k.client.Close())
	}
	return k, nil
}

// close ends the connection to the module. Run must have returned.
func (k *moduleKernel) close() error {
	return errors.Join(k.listener.Close(), k.lister.client.Close(), k.client.Close())
}

func (k *moduleKernel) event(r *usersync.Record) {
	k.captured.Add(1)
	k.engine.Heard(r)
}

// lose notes that events were lost.
func (k *moduleKernel) lose(why error) {
	k.losses.Add(1)
	k.repaired.Store(false)
	select {
	case k.lost <- why:
	default:
	}
}

// Run hears events until ctx ends, or the module is unloaded, which is
// usersync.ErrNotLoaded. With mark it begins by making mirror and kernel right
// (Engine.reconcile).
func (k *moduleKernel) Run(ctx context.Context, mark bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.listener.Run(ctx) })
	g.Go(func() error {
		if mark {
			k.reconcile(ctx, true, errors.New("the module was loaded"))
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case why := <-k.lost:
				k.reconcile(ctx, false, why)
			}
		}
	})
	return g.Wait()
}

// reconcileAgain is how long to wait after a dump that failed.
const reconcileAgain = time.Second

// reconcile tries until it did it, or the module is gone.
func (k *moduleKernel) reconcile(ctx context.Context, mark bool, why error) {
	for {
		k.repaired.Store(true) // what is lost from now on needs another one
		start := time.Now()
		done, err := k.engine.reconcile(k.client, mark)
		if err == nil {
			k.log.Info("compared the kernel's table with the mirror", "why", why, "entries", done.Entries, "news", done.News,
				"gone", done.Gone, "told", done.Told, "took", time.Since(start).Round(time.Millisecond))
			return
		}
		k.repaired.Store(false)
		if errors.Is(err, usersync.ErrNotLoaded) {
			return
		}
		k.log.Warn("compare the kernel's table with the mirror", "err", err)
		if !task.Pause(ctx, reconcileAgain) {
			return
		}
	}
}

// Inject makes or changes entries. What the kernel cannot have is counted, and
// is no error: it would be refused again.
func (k *moduleKernel) Inject(conns []conntable.Connection) error {
	changes, untouched := make([]usersync.Change, len(conns)), new(uint32)
	for i := range conns {
		changes[i] = usersync.Change{Connection: &conns[i], Packets: untouched, Expect: untouched}
	}
	return k.apply("inject", changes, k.client.Create)
}

// Delete makes an entry go, at once.
func (k *moduleKernel) Delete(c conntable.Connection) error {
	return k.apply("delete", []usersync.Change{{Connection: &c, Expect: new(uint32)}}, k.client.Delete)
}

// Settle has nothing to wait for: the module has done what it was told when it
// answers.
func (k *moduleKernel) Settle(context.Context) error { return nil }

// Lost is nothing: the module answers each command.
func (k *moduleKernel) Lost() uint64 { return 0 }

type command func([]usersync.Result, []usersync.Change) ([]usersync.Result, error)

func (k *moduleKernel) apply(what string, changes []usersync.Change, do command) error {
	results, err := do(nil, changes)
	for i, res := range results {
		k.judge(what, &changes[i], res.Err(), do)
	}
	return err
}

// judge deals with the answer to one change.
func (k *moduleKernel) judge(what string, ch *usersync.Change, err error, do command) {
	switch {
	case errors.Is(err, unix.EBUSY):
		err = k.contest(ch, do)
	case errors.Is(err, unix.ESTALE):
		err = k.replace(ch)
	}
	switch {
	case err == nil:
		k.injected.Add(1)
	case errors.Is(err, errYield):
		k.yielded.Add(1)
	case errors.Is(err, unix.ENOENT): // gone already
	default:
		if k.refused.Add(1) == 1 {
			k.log.Warn("the kernel refuses a connection, further ones are counted", "what", what, "client", ch.Client, "virtual", ch.Virtual,
				"dest", ch.Dest, "state", ch.State, "err", explain(err, ch))
		}
	}
}

// errYield says that the kernel's entry is newer.
var errYield = errors.New("the kernel's entry is newer")

// contestTries bounds how often packets may come between look and change.
const contestTries = 3

// contest changes an entry that packets have touched, if the engine knows
// newer.
func (k *moduleKernel) contest(ch *usersync.Change, do command) error {
	k.contested.Add(1)
	for range contestTries {
		rec, there, err := k.client.Get(ch.Key)
		switch {
		case err != nil:
			return err
		case there && !k.engine.yields(&rec):
			return errYield
		}
		again := *ch
		if there {
			again.Expect = &rec.Packets
		}
		res, err := do(nil, []usersync.Change{again})
		if err != nil {
			return err
		}
		if err := res[0].Err(); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return errYield // it is in use
}

// replace makes a closing connection in the place of an untouched entry with
// another real server, which the kernel takes for older news than that entry.
func (k *moduleKernel) replace(ch *usersync.Change) error {
	other := *ch.Connection
	other.Dest = netip.AddrPort{} // whichever it is
	res, err := k.client.Delete(nil, []usersync.Change{{Connection: &other, Expect: new(uint32)}})
	if err != nil {
		return err
	}
	if err := res[0].Err(); err != nil && !errors.Is(err, unix.ENOENT) {
		return errYield
	}
	if res, err = k.client.Create(nil, []usersync.Change{*ch}); err != nil {
		return err
	}
	return res[0].Err()
}

// explain adds the cure where there is one.
func explain(err error, ch *usersync.Change) error {
	if errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("%w: persistence engine %q is not loaded, \"modprobe ip_vs_pe_%s\" loads it", err, ch.PEName, ch.PEName)
	}
	return err
}

// Entries dumps the kernel's table. The dump costs little, so pace is asked
// before every few thousand entries.
func (k *moduleKernel) Entries(pace func() error, fn func(*Entry)) error {
	const slice = 4096
	n := 0
	var out Entry
	return k.client.Dump(usersync.Filter{}, func(r *usersync.Record) error {
		if n%slice == 0 && pace != nil {
			if err := pace(); err != nil {
				return err
			}
		}
		n++
		if r.Remaining <= 0 || ipvs.IsBeat(&r.Connection) {
			return nil
		}
		out = Entry{r.Connection, (r.Remaining + time.Second - 1).Truncate(time.Second), r.Flags&conntable.FlagSync != 0, false}
		out.Flags &= conntable.FlagBackupMask
		if r.Seq != nil {
			out.Seq = &conntable.SeqPair{In: r.Seq.In, Out: r.Seq.Out}
		}
		out.PEData = slices.Clone(r.PEData)
		fn(&out)
		return nil
	})
}

// Stats returns the counters.
func (k *moduleKernel) Stats() KernelStats {
	st := KernelStats{
		Source: "module", Captured: k.captured.Load(), Injected: k.injected.Load(), Drops: k.refused.Load() + k.losses.Load(),
	}
	if !k.repaired.Load() {
		st.Degraded = "events of the kernel module were lost; the table is being compared"
	}
	return st
}
