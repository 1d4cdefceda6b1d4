package director

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"saru/internal/control"
	"saru/internal/ownership"
	"saru/partition"
)

// ownership says which established flows this director serves now: none when
// its lease has lapsed.
func (d *daemon) ownership(ctx context.Context) (*ownership.Told, error) {
	s := d.current()
	if len(s.VIPs) == 0 {
		return nil, errNoShare
	}
	var serves partition.Set
	err := d.engine.ask(ctx, func(now time.Duration) {
		if snap := d.engine.core.Snapshot(now); snap.LeaseLeft > 0 {
			serves = snap.Rest
		}
	})
	if err != nil {
		return nil, fmt.Errorf("the engine does not answer: %w", err)
	}
	return ownership.NewTold(s.Plan(), serves), nil
}

// serveOwnership answers GET /ownership, for the syncd beside us.
func (d *daemon) serveOwnership(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	told, err := d.ownership(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	control.JSON(w, told)
}
