package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/partition"
	"saru/partition/nft"
)

// firstQueue is the number of the first queue of share 0. Each share has
// perShare of them.
const (
	firstQueue = 0x5300
	perShare   = 32
	maxQueues  = perShare - 1 // one is the backstop's
)

// A Filter is nft.Filter with a share that is judged in user space. It is a
// task: nothing is accepted unless Run runs.
type Filter struct {
	table   *nft.Filter
	share   *share
	all     partition.Set
	readers []*reader
	queues  nft.Queues
	kernel  *os.File // what the kernel counts of the queues
	ready   chan struct{}
}

// Open puts the table in place, closed, and takes the queues, one for each CPU.
func Open(cfg nft.Config) (_ *Filter, err error) {
	divider, err := partition.NewDivider(cfg.Plan)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	f := &Filter{
		share: newShare(divider), all: partition.FullSet(divider.Buckets), ready: make(chan struct{}),
		queues: nft.Queues{First: uint16(firstQueue + perShare*cfg.ShareID), N: uint16(min(runtime.NumCPU(), maxQueues))},
	}
	cfg.Queues = &f.queues
	if f.table, err = nft.Open(cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for i := range f.queues.N {
		if err = f.take(f.queues.First+i, &view{share: f.share}); err != nil {
			return nil, err
		}
	}
	if cfg.Backstop {
		if err = f.take(f.queues.First+f.queues.N, &backstop{view{share: f.share}}); err != nil {
			return nil, err
		}
	}
	// It is there once a queue was asked for, which loads the module, and shows
	// the namespace in which it was opened.
	if f.kernel, err = os.Open("/proc/thread-self/net/netfilter/nfnetlink_queue"); err != nil {
		return nil, fmt.Errorf("queue: this kernel has no nfnetlink_queue: %w", err)
	}
	return f, nil
}

func (f *Filter) take(queue uint16, j judge) error {
	r, err := newReader(queue, j, &f.share.stats)
	if err == nil {
		f.readers = append(f.readers, r)
	}
	return err
}

// Run judges what comes until ctx ends.
func (f *Filter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	listening := make(chan struct{}, len(f.readers))
	for _, r := range f.readers {
		g.Go(func() error { return r.run(ctx, func() { listening <- struct{}{} }) })
	}
	g.Go(func() error {
		for range f.readers {
			select {
			case <-listening:
			case <-ctx.Done():
				return nil
			}
		}
		close(f.ready)
		return nil
	})
	return g.Wait()
}

// Ready is closed once all queues are read.
func (f *Filter) Ready() <-chan struct{} { return f.ready }

func (f *Filter) String() string { return "queues" }

// Arm and Confirm are those of nft.Filter: the lease is the kernel's.
func (f *Filter) Arm(n uint64) error { return f.table.Arm(n) }

// Confirm is described with Arm.
func (f *Filter) Confirm(n uint64) error { return f.table.Confirm(n) }

// Apply makes d what is accepted while the lease lives. When it returns no
// packet is accepted by what was held before. It waits for the verdicts that
// are being given, not for other people's transactions. Errors: nft.ErrGone;
// nft.ErrUnknown if the table could not be read. Nothing is held then.
func (f *Filter) Apply(d nft.Desired) error {
	if !d.Rest.Contains(d.Open) {
		return errors.New("queue: rest must hold all that is open")
	}
	if !f.all.Contains(d.Rest) {
		return fmt.Errorf("queue: bucket beyond the last, %d", f.all.Len()-1)
	}
	f.share.apply(d)
	// Reading the table waits for nobody.
	_, err := f.table.Stats()
	return f.share.judged(err)
}

// Settle is that of nft.Filter.
func (f *Filter) Settle(buckets *partition.Set, d time.Duration) error {
	f.share.settle(buckets, time.Now().Add(d))
	return nil
}

// Verify is that of nft.Filter.
func (f *Filter) Verify() (bool, error) { return f.table.Verify() }

// Reset holds nothing any more, and replaces the table by a closed one; the
// kernel drops what is queued.
func (f *Filter) Reset() error {
	f.share.apply(nft.Desired{})
	return f.table.Reset()
}

// Replan holds nothing any more, and divides flows in another way. If it fails
// the old way stays.
func (f *Filter) Replan(p partition.Plan) error {
	divider, err := partition.NewDivider(p)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	was := f.share.replan(divider)
	if err = f.table.Replan(p); err != nil {
		f.share.replan(was)
	}
	return err
}

// Close removes the table, and gives the queues back. It may be called twice,
// and not beside Run.
func (f *Filter) Close() error {
	f.share.apply(nft.Desired{})
	var errs []error
	if f.table != nil {
		errs = append(errs, f.table.Close())
	}
	for _, r := range f.readers {
		errs = append(errs, r.close())
	}
	f.readers = nil
	if f.kernel != nil {
		errs = append(errs, f.kernel.Close())
		f.kernel = nil
	}
	return errors.Join(errs...)
}
