package syncd

import (
	"bufio"
	"fmt"
	"io"
	"net/http"

	"saru/conntable"
)

// A metricsWriter writes the Prometheus text format, version 0.0.4: few
// lines, since all our metrics are numbers that Status has anyway.
type metricsWriter struct {
	w    *bufio.Writer
	last string
}

// value writes one sample; kind is counter or gauge. Samples of one metric
// follow each other. label is empty or a name and its value.
func (m *metricsWriter) value(kind, name, help string, v float64, label ...string) {
	if name != m.last {
		fmt.Fprintf(m.w, "# HELP syncd_%s %s\n# TYPE syncd_%s %s\n", name, help, name, kind)
		m.last = name
	}
	if len(label) == 2 {
		fmt.Fprintf(m.w, "syncd_%s{%s=%q} %v\n", name, label[0], label[1], v)
		return
	}
	fmt.Fprintf(m.w, "syncd_%s %v\n", name, v)
}

func (m *metricsWriter) gauge(name, help string, v float64, label ...string) {
	m.value("gauge", name, help, v, label...)
}

func (m *metricsWriter) counter(name, help string, v uint64, label ...string) {
	m.value("counter", name, help, float64(v), label...)
}

// WriteMetrics writes what Status tells for Prometheus.
func (e *Engine) WriteMetrics(w io.Writer) error {
	m := &metricsWriter{w: bufio.NewWriter(w)}
	st := e.Status()
	m.gauge("synced", "1 if this node holds the cluster's connections.", truth(st.Synced))
	m.gauge("degraded", "1 if capture or injection does not work as it should.", truth(st.Degraded != ""))
	m.gauge("mirror_connections", "Connections in the mirror.", float64(st.Connections.Mirror))
	m.gauge("mirror_limit", "Connections that the mirror takes.", float64(st.Connections.Limit))
	m.gauge("mirror_tombstones", "Deleted connections still remembered.", float64(st.Connections.Tombstones))
	m.counter("mirror_expired_total", "Connections that left the mirror at their deadline.", e.expired.Load())
	m.gauge("kernel_connections", "Connections that the kernel counts at real servers.", float64(st.Connections.Kernel))
	m.counter("kernel_captured_total", "Records that the kernel told.", st.Kernel.Captured)
	m.counter("kernel_injected_total", "Records that the kernel was told.", st.Kernel.Injected)
	m.counter("kernel_reinjected_total", "Records told again since a real server appeared.", st.Kernel.Reinjected)
	m.counter("kernel_drops_total", "Records lost on the way to or from the kernel.", st.Kernel.Drops)
	m.counter("kernel_outrun_total", "Peers' records not injected since newer state was here.", e.outrun.Load())
	m.gauge("kernel_waiting", "Records that wait to be injected.", float64(st.Kernel.Waiting))
	m.counter("shed_total", "Records of ours that found the mirror full.", st.Kernel.Shed)
	m.counter("sent_datagrams_total", "Datagrams of records sent to the peers.", st.Sent.Datagrams)
	m.counter("sent_records_total", "Records sent to the peers.", st.Sent.Records)
	for i := range e.outcomes {
		m.counter("records_total", "Peers' records by what became of them.", e.outcomes[i].Load(), "outcome", conntable.Outcome(i).String())
	}
	e.session.Drops(func(why string, n uint64) {
		m.counter("drops_total", "What was discarded, by reason.", n, "reason", why)
	})
	m.peers(&st)
	return m.w.Flush()
}

func (m *metricsWriter) peers(st *Status) {
	for i := range st.Peers {
		m.gauge("peer_up", "1 if the peer is heard.", truth(st.Peers[i].State != "silent"), "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		m.gauge("peer_lag_seconds", "Age of the oldest datagram that is missing.", st.Peers[i].LagMS/1000, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		m.counter("peer_received_total", "Records received.", st.Peers[i].Received, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		m.counter("peer_lost_total", "Datagrams that were missing.", st.Peers[i].Lost, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		m.counter("peer_repaired_total", "Datagrams that were missing and resent.", st.Peers[i].Repaired, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		if eq := st.Peers[i].DigestEqual; eq != nil {
			m.gauge("peer_digest_equal", "1 if the peer's table was equal at the last comparison.", truth(*eq), "peer", st.Peers[i].Name)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// MetricsHandler serves GET /metrics.
func (e *Engine) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		e.WriteMetrics(w)
	})
	return mux
}
