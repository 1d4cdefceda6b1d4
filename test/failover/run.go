package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Result is what one system did.
type Result struct {
	System string
	Took   []time.Duration // from each cut to the first packet accepted elsewhere, ascending
	Twice  int             // datagrams that were accepted more than once
}

// Quantile returns the time that a part of the failovers did not exceed.
func (r *Result) Quantile(q float64) time.Duration {
	if len(r.Took) == 0 {
		return 0
	}
	i := int(q*float64(len(r.Took)) + 0.9999999)
	return r.Took[min(max(i-1, 0), len(r.Took)-1)]
}

// Run cuts the power of each system's directors so many times, the systems in
// turn, and tells of it on w. dir keeps logs.
func Run(ctx context.Context, w io.Writer, dir string, kills int, systems ...System) ([]*Result, error) {
	var one, say sync.Mutex // one cut at a time
	g, ctx := errgroup.WithContext(ctx)
	results := make([]*Result, len(systems))
	for i, s := range systems {
		r := &Result{System: s.Name}
		results[i] = r
		g.Go(func() error {
			p, err := open(ctx, s, fmt.Sprintf("bench%d", i), dir)
			if err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
			err = p.failovers(ctx, &one, kills, func(took time.Duration) {
				r.Took = append(r.Took, took)
				say.Lock()
				defer say.Unlock()
				fmt.Fprintf(w, "%-28s %3d  %7.1f ms\n", s.Name, len(r.Took), float64(took.Microseconds())/1e3)
			})
			slices.Sort(r.Took)
			r.Twice = len(p.ledger.Twice())
			return errors.Join(err, p.close())
		})
	}
	return results, g.Wait()
}

func (p *pair) failovers(ctx context.Context, one *sync.Mutex, kills int, tell func(time.Duration)) error {
	for range kills {
		one.Lock()
		v := p.victim()
		took, err := p.cut(ctx, v)
		one.Unlock()
		if err != nil {
			return err
		}
		tell(took)
		if err := v.Boot(); err != nil {
			return err
		}
		if err := p.boot(ctx, v); err != nil {
			return err
		}
		if err := p.serves(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Print writes the results as a table.
func Print(w io.Writer, results []*Result) {
	fmt.Fprintf(w, "\n%-28s %5s %9s %9s %9s %9s %6s\n", "power cut to first packet", "cuts", "min ms", "p50 ms", "p99 ms", "max ms", "twice")
	for _, r := range results {
		ms := func(q float64) float64 { return float64(r.Quantile(q).Microseconds()) / 1e3 }
		fmt.Fprintf(w, "%-28s %5d %9.1f %9.1f %9.1f %9.1f %6d\n", r.System, len(r.Took), ms(0), ms(0.5), ms(0.99), ms(1), r.Twice)
	}
}
