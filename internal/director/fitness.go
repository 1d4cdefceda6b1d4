package director

import (
	"context"
	"fmt"
	"time"
)

const (
	fitnessEvery = time.Second
	// troubleLasts is for how long something that happened counts as trouble;
	// only what keeps happening for longer than the protocol's hysteresis
	// moves a share.
	troubleLasts = 5 * time.Second
)

// A fitness judges whether this director serves worse than a healthy one would:
// it then gives its share away, as long as a healthy one is there.
type fitness struct {
	late, resets, overruns     uint64 // as counted last
	lateAt, resetAt, overrunAt time.Duration
	why                        string
}

// A condition is what fitness judges.
type condition struct {
	late     uint64 // ticks that were late, ever
	resets   uint64 // of the kernel's table, ever
	overruns uint64 // packets that the queues had no room for, ever
	syncd    string // what is wrong with the own syncd, or ""
}

// judge returns what makes this director worse than a healthy one, or "".
func (f *fitness) judge(now time.Duration, c condition) string {
	since := func(at *time.Duration, was *uint64, is uint64) bool {
		if is > *was {
			*at = now
		}
		*was = is
		return *at != 0 && now-*at < troubleLasts
	}
	late, reset, overrun := since(&f.lateAt, &f.late, c.late), since(&f.resetAt, &f.resets, c.resets), since(&f.overrunAt, &f.overruns, c.overruns)
	switch {
	case c.syncd != "":
		return "syncd: " + c.syncd
	case reset:
		return fmt.Sprintf("somebody keeps changing the kernel's table, %d times so far", c.resets)
	case overrun:
		return "packets come faster than they are judged"
	case late:
		return fmt.Sprintf("too little processor time: %d ticks were late so far", c.late)
	}
	return ""
}

// watchFitness judges until ctx ends.
func (d *daemon) watchFitness(ctx context.Context) error {
	tick := time.NewTicker(fitnessEvery)
	defer tick.Stop()
	var f fitness
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var overruns uint64
		if d.filter != nil && d.settings.Backend == backendQueues {
			if st, err := d.filter.Stats(); err == nil {
				overruns = st.Overruns
			}
		}
		// It fails only when ctx has ended.
		_ = d.engine.ask(ctx, func(now time.Duration) {
			c := condition{late: d.engine.core.Snapshot(now).Stats.LateTicks, overruns: overruns, syncd: d.gate.degraded}
			if d.applier != nil {
				c.resets = d.applier.resets
			}
			f.why = f.judge(now, c)
			d.engine.unfit = f.why
			d.engine.core.SetDegraded(now, f.why != "")
		})
	}
}
