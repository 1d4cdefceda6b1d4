package director

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"saru/internal/control"
	"saru/membership"
)

// handler serves the control socket.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
		defer cancel()
		st, err := d.status(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		d.addOthers(ctx, st)
		control.JSON(w, st)
	})
	mux.HandleFunc("GET /explain", d.serveExplain)
	mux.HandleFunc("GET /buckets", d.serveBuckets)
	mux.HandleFunc("GET /ownership", d.serveOwnership)
	mux.HandleFunc("GET /events", d.engine.events.serve)
	mux.HandleFunc("POST /weight", d.serveWeight)
	for path, do := range map[string]func(context.Context) error{
		"/drain": d.drain,
		"/undrain": func(ctx context.Context) error {
			return d.tell(ctx, func(c *membership.Core, now time.Duration) { c.Drain(now, false) })
		},
		"/freeze": func(ctx context.Context) error {
			return d.tell(ctx, func(c *membership.Core, now time.Duration) { c.Freeze(now, true) })
		},
		"/unfreeze": func(ctx context.Context) error {
			return d.tell(ctx, func(c *membership.Core, now time.Duration) { c.Freeze(now, false) })
		},
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			control.JSON(w, struct{}{})
		})
	}
	return d.withOthers(mux)
}

// A Weight is what POST /weight takes.
type Weight struct {
	Weight int `json:"weight"`
}

func (d *daemon) serveWeight(w http.ResponseWriter, r *http.Request) {
	var body Weight
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.setWeight(r.Context(), body.Weight); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	control.JSON(w, struct{}{})
}

// Socket returns the control socket that the configuration at path names.
func Socket(path string) (string, error) {
	f, err := readFile(path)
	return f.Control.Socket, err
}
