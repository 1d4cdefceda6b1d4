package director

import (
	"context"
	"fmt"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// watchdog tells systemd that the protocol is driven, three times in the time
// that it allows (sd_watchdog_enabled(3)); without a watchdog it does nothing.
// A daemon that hangs holds no lease, and is better started again.
func (d *daemon) watchdog(ctx context.Context) error {
	within, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("systemd's watchdog: %w", err)
	}
	if within == 0 {
		return nil
	}
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		if err := d.engine.ask(ctx, func(time.Duration) {}); err != nil {
			return nil // only when ctx ended
		}
		d.tellSystemd(systemd.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tellSystemd tells it a state; without systemd there is nobody to tell.
func (d *daemon) tellSystemd(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		d.log.Warn("tell systemd", "err", err)
	}
}
