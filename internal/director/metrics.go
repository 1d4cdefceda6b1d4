package director

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"time"

	"saru/internal/config"
)

// writeMetrics writes st in the Prometheus text format, version 0.0.4: all
// our metrics are numbers that Status has anyway.
func writeMetrics(out io.Writer, st *Status) error {
	w := bufio.NewWriter(out)
	last := ""
	value := func(kind, name, help string, v any, label ...string) {
		if name != last {
			fmt.Fprintf(w, "# HELP saru_%s %s\n# TYPE saru_%s %s\n", name, help, name, kind)
			last = name
		}
		if len(label) == 2 {
			fmt.Fprintf(w, "saru_%s{%s=%q} %v\n", name, label[0], label[1], v)
			return
		}
		fmt.Fprintf(w, "saru_%s %v\n", name, v)
	}
	for _, s := range []string{"joining", "ready", "draining", "fenced", "left"} {
		value("gauge", "state", "1 for the state that this director is in.", number(st.State == s), "state", s)
	}
	value("gauge", "master", "1 if this director is the master.", number(st.Master == st.Node))
	value("gauge", "epoch", "The assignment's epoch; it only grows.", st.Epoch)
	value("gauge", "members_heard", "Directors heard, this one included.", st.Quorum.Have)
	value("gauge", "share_buckets", "Buckets open here.", st.Share.Buckets)
	value("gauge", "share_buckets_total", "Buckets that there are.", st.Share.Total)
	value("gauge", "lease_left_seconds", "For how long acceptance goes on without another grant.", st.Share.LeaseLeftMS/1000)
	value("counter", "accepted_packets_total", "Packets admitted as this director's.", st.Filter.Accepted)
	value("counter", "dropped_packets_total", "Packets left to others, or without a lease.", st.Filter.Dropped)
	value("counter", "lapsed_packets_total", "Packets dropped for want of a lease.", st.Filter.Lapsed)
	value("counter", "own_mac_packets_total", "Packets for a virtual address sent to the own MAC.", st.Filter.Own)
	value("counter", "silenced_packets_total", "Unknown mid-stream packets met with silence.", st.Filter.Silenced)
	value("counter", "filter_resets_total", "Times that the table was found changed by others.", st.Filter.Resets)
	value("gauge", "worst_tick_seconds", "By how much a tick was ever late.", st.Engine.WorstTickMS/1000)
	for _, p := range st.Paths {
		value("counter", "path_sent_total", "Messages sent, by path.", p.Sent, "path", p.Name)
	}
	for _, p := range st.Paths {
		value("counter", "path_received_total", "Messages received, by path.", p.Received, "path", p.Name)
	}
	for _, p := range st.Paths {
		value("counter", "path_refused_total", "Messages that did not open, by path.", p.Refused, "path", p.Name)
	}
	stats := reflect.ValueOf(st.Protocol)
	for i := range stats.NumField() {
		value("counter", "protocol_total", "What the protocol saw and did.", stats.Field(i).Uint(), "event", stats.Type().Field(i).Name)
	}
	return w.Flush()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A metricsServer serves GET /metrics. It is a task.
type metricsServer struct {
	ln  net.Listener
	srv *http.Server
	up  chan struct{}
}

func listenMetrics(at string, status func(context.Context) (*Status, error)) (*metricsServer, error) {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return nil, config.Bad("control.metrics = %q: %v; name another port, or \"\" for none", at, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		st, err := status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		// An error here is the scraper's going away.
		_ = writeMetrics(w, st)
	})
	return &metricsServer{ln, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, make(chan struct{})}, nil
}

func (m *metricsServer) close() error { return m.ln.Close() }

// Run serves until ctx ends.
func (m *metricsServer) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.srv.Close() })
	defer stop()
	close(m.up)
	if err := m.srv.Serve(m.ln); ctx.Err() == nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Ready is closed when metrics are served.
func (m *metricsServer) Ready() <-chan struct{} { return m.up }

func (m *metricsServer) String() string { return "metrics" }
