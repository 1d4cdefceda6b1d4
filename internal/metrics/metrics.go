// Package metrics serves a daemon's numbers to Prometheus.
//
// What must hold: the numbers are those of "status", taken when they are asked
// for; nothing is counted twice for their sake.
package metrics

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"saru/internal/config"
)

// A Sink takes the numbers of one scrape.
type Sink struct {
	prefix string
	out    chan<- prometheus.Metric
}

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

// A collector asks for all numbers at each scrape.
type collector struct {
	prefix string
	write  func(*Sink) error
}

// Describe names nothing in advance: which labels there are depends on the
// cluster.
func (c collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	if err := c.write(&Sink{c.prefix, out}); err != nil {
		out <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
	}
}

// Handler serves GET /metrics with what write tells, each name behind prefix
// and an underscore.
func Handler(prefix string, write func(*Sink) error) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{prefix, write})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

// A Server serves a Handler. It is a task.
type Server struct {
	ln  net.Listener
	srv *http.Server
	up  chan struct{}
}

// Listen opens the address that control.metrics names.
func Listen(at string, h http.Handler) (*Server, error) {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return nil, config.Bad("control.metrics = %q: %v; name another port, or \"\" for none", at, err)
	}
	return &Server{ln, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}, make(chan struct{})}, nil
}

// Close closes a Server that does not run.
func (s *Server) Close() error { return s.ln.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.srv.Close() })
	defer stop()
	close(s.up)
	if err := s.srv.Serve(s.ln); ctx.Err() == nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Ready is closed when metrics are served.
func (s *Server) Ready() <-chan struct{} { return s.up }

func (s *Server) String() string { return "metrics" }
