package director

import (
	"context"
	"fmt"
	"net/http"
	"sync"
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

// shareTellsWithin bounds how long another share's telling is waited for: what
// is late is not believed any more, and must not hold up the first's.
const shareTellsWithin = ownership.Stale / 8

// allOwnership adds the other shares of this process, as many as answer, to the
// first's.
func (d *daemon) allOwnership(ctx context.Context) (*ownership.Told, error) {
	told, err := d.ownership(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, shareTellsWithin)
	defer cancel()
	others := make([]*ownership.Told, len(d.settings.Others))
	var wg sync.WaitGroup
	for i, o := range d.settings.Others {
		wg.Go(func() {
			var t ownership.Told
			if control.NewClient(o.Socket).Get(ctx, "/ownership", &t) == nil {
				others[i] = &t
			}
		})
	}
	wg.Wait()
	for _, t := range others {
		if t != nil {
			told.Others = append(told.Others, *t)
		}
	}
	return told, nil
}

// serveOwnership answers GET /ownership, for the syncd beside us.
func (d *daemon) serveOwnership(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	told, err := d.allOwnership(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	control.JSON(w, told)
}
