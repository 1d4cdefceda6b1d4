package director

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"saru/ipvs"
	"saru/membership"
	"saru/partition"
	"saru/partition/nft"
)

// running does an engine's turns until the test ends.
func running(t *testing.T, e *Engine) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				e.turn()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

// A share is closed when its table is replaced, and begins a new life with
// another shape; while the others want another it stays; and where the kernel's
// answer is lost it stays closed, and tries again.
func TestReshape(t *testing.T) {
	p := newPair(t)
	e := p.engines[0]
	running(t, e)
	snapshot := func() (s membership.Snapshot) {
		if err := e.ask(t.Context(), func(now time.Duration) {
			e.core.SetGate(now, true, true)
			s = e.core.Snapshot(now)
		}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	serving := func() {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			s := snapshot()
			if s.Open.Len() == 256 && s.LeaseLeft > 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not serving: %+v", s)
			}
		}
	}
	serving()

	d := &daemon{engine: e, log: slog.New(slog.DiscardHandler)}
	d.settings = &Settings{ID: 1, VIPs: partition.Hosts(netip.MustParseAddr("10.9.0.100")), Buckets: 256, Sense: partition.SrcPort, IPVS: true}
	d.shape.Store(d.settings)
	var services []offered
	var others []string
	var answers []error
	replans := 0
	r := &reshaper{
		d: d, log: d.log, read: func() ([]offered, error) { return services, nil },
		want: func(string) {}, differ: func(string) []string { return others },
		replan: func(p partition.Plan) error {
			if s := snapshot(); !s.Open.Empty() || !s.Rest.Empty() {
				t.Errorf("replaced the table with %v open", s.Open)
			}
			replans++
			if len(p.Services) != 1 {
				t.Errorf("the plan has the services %v", p.Services)
			}
			answer := answers[0]
			answers = answers[1:]
			return answer
		},
	}
	look := func(what string, wantReplans int, wantChange bool) {
		t.Helper()
		was := d.current().Shape()
		if err := r.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if replans != wantReplans || (d.current().Shape() != was) != wantChange {
			t.Errorf("%s: replaced %d times, want %d; the shape has changed: %v, want %v", what, replans, wantReplans, d.current().Shape() != was, wantChange)
		}
	}
	look("nothing changed", 0, false)
	services = []offered{{Service: service(partition.TCP, "10.9.0.100:80", ipvs.ServicePersistent, 0xffffffff)}}
	others = []string{"b"}
	look("the others differ", 0, false)
	if r.why() == "" {
		t.Error("nobody is told that the others differ")
	}
	serving()

	if err := e.ask(t.Context(), func(now time.Duration) { e.core.SetWeight(now, 70) }); err != nil {
		t.Fatal(err)
	}
	others = nil
	answers = []error{errors.New("refused"), fmt.Errorf("lost: %w", nft.ErrUnknown), nil}
	look("refused", 1, false)
	serving()
	look("lost", 2, false)
	others = []string{"b"} // does not matter any more: the table may be the new one
	look("tried again", 3, true)
	var config membership.Config
	if err := e.ask(t.Context(), func(time.Duration) { config = e.config }); err != nil {
		t.Fatal(err)
	}
	if config.Shape != d.current().Shape() {
		t.Error("the protocol has another shape than the table")
	}
	serving()
	if weight := snapshot().Members[0].Weight; weight != 70 {
		t.Errorf("the weight that was set at run time is %d in the new life", weight)
	}
	if err := e.ask(t.Context(), func(time.Duration) {
		if e.armErrors > 0 {
			t.Errorf("%d heartbeats were not armed: their numbers do not grow", e.armErrors)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
