package director

import (
	"context"
	"errors"
	"fmt"
	"time"

	"saru/membership"
)

const (
	// drainLook is how often a drain looks whether the share is gone.
	drainLook = 50 * time.Millisecond
	// DrainWithin bounds how long a drain is waited for: the longest that
	// established flows of a bucket given away are still served here, and a
	// little for giving it away.
	DrainWithin = membership.DefaultLingerMax + 10*time.Second
)

// errNoTaker is the answer to a drain that cannot go on.
var errNoTaker = errors.New("no other director is ready to take the share, so it stays here and goes as soon as one is; 'saru undrain' ends this")

// tell has the protocol do something.
func (d *daemon) tell(ctx context.Context, do func(c *membership.Core, now time.Duration)) error {
	return d.engine.ask(ctx, func(now time.Duration) { do(d.engine.core, now) })
}

// drain gives the share away, and returns when no packet is admitted here any
// more, established flows included.
func (d *daemon) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, DrainWithin, fmt.Errorf("the share is not gone after %v; 'saru status' shows what is left", DrainWithin))
	defer cancel()
	if err := d.tell(ctx, func(c *membership.Core, now time.Duration) { c.Drain(now, true) }); err != nil {
		return err
	}
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		var snap membership.Snapshot
		if err := d.tell(ctx, func(c *membership.Core, now time.Duration) { snap = c.Snapshot(now) }); err != nil {
			return context.Cause(ctx)
		}
		switch {
		case snap.Open.Empty() && snap.Rest.Empty():
			return nil
		case snap.State != membership.Draining:
			return fmt.Errorf("the drain was ended: this node is %v now", snap.State)
		case !hasTaker(&snap):
			return errNoTaker
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hasTaker reports whether another director may take this node's share.
func hasTaker(s *membership.Snapshot) bool {
	for _, m := range s.Members[1:] {
		if m.Heard && m.Role == "director" && (m.State == membership.Ready.String() || m.State == membership.Degraded.String()) {
			return true
		}
	}
	return false
}
