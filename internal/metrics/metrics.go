// Package metrics serves a daemon's numbers to Prometheus.
//
// What must hold: the numbers are those of "status", taken when they are asked
// for; nothing is counted twice for their sake.
package metrics

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"saru/internal/config"
	"saru/internal/web"
)

// A Sink takes the numbers of one scrape.
type Sink struct {
	ctx    context.Context
	prefix string
	out    chan<- prometheus.Metric
}

// Context ends when nobody waits for the numbers any more.
func (s *Sink) Context() context.Context { return s.ctx }

// Gauge takes a number that goes up and down. label is empty or pairs of a
// label's name and its value; all samples of one name have the same labels.
func (s *Sink) Gauge(name, help string, v float64, label ...string) {
	s.take(prometheus.GaugeValue, name, help, v, label)
}

// Counter takes a number that only grows while the daemon runs. Its name ends
// with _total.
func (s *Sink) Counter(name, help string, v uint64, label ...string) {
	s.take(prometheus.CounterValue, name, help, float64(v), label)
}

// Flag takes 1 for yes, 0 for no.
func (s *Sink) Flag(name, help string, yes bool, label ...string) {
	v := 0.0
	if yes {
		v = 1
	}
	s.Gauge(name, help, v, label...)
}

func (s *Sink) take(kind prometheus.ValueType, name, help string, v float64, label []string) {
	var names, values []string
	for i := 0; i+1 < len(label); i += 2 {
		names, values = append(names, label[i]), append(values, strings.ToValidUTF8(label[i+1], "?"))
	}
	desc := prometheus.NewDesc(s.prefix+"_"+name, help, names, nil)
	m, err := prometheus.NewConstMetric(desc, kind, v, values...)
	if err != nil {
		m = prometheus.NewInvalidMetric(desc, err)
	}
	s.out <- m
}

// A collector asks for all numbers, at one scrape.
type collector struct {
	ctx    context.Context
	prefix string
	write  func(*Sink) error
}

// Describe names nothing in advance: which labels there are depends on the
// cluster.
func (c collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	if err := c.write(&Sink{c.ctx, c.prefix, out}); err != nil {
		out <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
	}
}

// Handler serves GET /metrics with what write tells, each name behind prefix
// and an underscore.
func Handler(prefix string, write func(*Sink) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		reg := prometheus.NewRegistry()
		reg.MustRegister(collector{r.Context(), prefix, write})
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	})
	return mux
}

// Listen opens the address that control.metrics names.
func Listen(at string, h http.Handler) (*web.Server, error) {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return nil, config.Bad("control.metrics = %q: %v; name another port, or \"\" for none", at, err)
	}
	return web.NewServer("metrics", ln, h), nil
}
