package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"saru/test/lab"
)

// stopLimit bounds the end of a daemon after SIGTERM.
const stopLimit = 30 * time.Second

// restart is what an operator does to upgrade a director: drain it, end its
// daemons, start them again. The director's kernel keeps its table meanwhile.
func (r *run) restart(ctx context.Context, d *lab.Director) error {
	name := d.Name
	fo := Failover{Director: name, Detected: -1, TakenOver: -1, Returned: -1}
	r.happen("drain %s", name)
	fo.Cut = time.Now()
	if out, err := d.Run(ctx, r.bin.Saru, "drain", "--config", filepath.Join(r.dir, name, "saru.toml")); err != nil {
		return fmt.Errorf("drain %s: %w: %s", name, err, out)
	}
	fo.TakenOver = time.Since(fo.Cut)
	r.report.Failovers = append(r.report.Failovers, fo)
	r.say("drained %s in %s", name, show(fo.TakenOver))
	r.watch.down(name)
	for _, daemon := range []string{"saru", "syncd"} {
		r.mu.Lock()
		p := r.daemons[name+" "+daemon]
		r.mu.Unlock()
		if p == nil {
			continue // the kernel's own sync threads
		}
		if err := p.Term(stopLimit); err != nil {
			return err
		}
		if p.ExitCode() != 0 {
			return fmt.Errorf("%s of %s ended with status %d", daemon, name, p.ExitCode())
		}
	}
	if err := sleep(ctx, r.plan.Off); err != nil {
		return err
	}
	back := time.Now()
	if err := r.startDirector(ctx, d); err != nil {
		return err
	}
	r.happen("%s returns", name)
	took, err := r.watch.until(ctx, back, watchEvery, joinLimit, "return of "+name, r.everybody)
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	r.report.Failovers[len(r.report.Failovers)-1].Returned = took
	r.say("%s holds a share again after %s", name, show(took))
	return nil
}
