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
	// lateWindow is of how many seconds late ticks are counted, and lateShare
	// the part of all ticks that is too much.
	lateWindow = 5
	lateShare  = 0.25
)

// A fitness judges whether this director serves worse than a healthy one would:
// it then gives its share away, as long as a healthy one is there.
type fitness struct {
	interval           time.Duration      // between two ticks
	recent             [lateWindow]uint64 // late ticks in each of the last seconds
	late               uint64             // ever, as counted last
	resets, overruns   uint64
	resetAt, overrunAt time.Duration
}

// A condition is what fitness judges.
type condition struct {
	late     uint64 // ticks that were late in this life of the protocol
	resets   uint64 // of the kernel's table, ever
	overruns uint64 // packets that the queues had no room for, ever
	syncd    string // what is wrong with the own syncd, or ""
}

// judge is called each second, and returns what makes this director worse than
// a healthy one, or "".
func (f *fitness) judge(now time.Duration, c condition) string {
	since := func(at *time.Duration, was *uint64, is uint64) bool {
		if is > *was {
			*at = now
		}
		*was = is
		return *at != 0 && now-*at < troubleLasts
	}
	reset, overrun := since(&f.resetAt, &f.resets, c.resets), since(&f.overrunAt, &f.overruns, c.overruns)
	copy(f.recent[1:], f.recent[:])
	if c.late < f.late {
		f.late = 0 // a new life began, for another division of the share
	}
	f.recent[0], f.late = c.late-f.late, c.late
	var late uint64
	for _, n := range f.recent {
		late += n
	}
	ticks := float64(lateWindow*time.Second) / float64(f.interval)
	switch {
	case c.syncd != "":
		return "syncd: " + c.syncd
	case reset:
		return fmt.Sprintf("somebody keeps changing the kernel's table, %d times so far", c.resets)
	case overrun:
		return "packets come faster than they are judged"
	case float64(late) >= lateShare*ticks:
		return fmt.Sprintf("too little processor time: %d of %d ticks were late", late, int(ticks))
	}
	return ""
}

// watchFitness judges until ctx ends.
func (d *daemon) watchFitness(ctx context.Context) error {
	tick := time.NewTicker(fitnessEvery)
	defer tick.Stop()
	f := fitness{interval: d.engine.interval}
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
			d.engine.unfit = f.judge(now, c)
			d.engine.core.SetDegraded(now, d.engine.unfit != "")
		})
	}
}
