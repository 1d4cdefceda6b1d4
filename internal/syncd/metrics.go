package syncd

import (
	"saru/conntable"
	"saru/internal/metrics"
)

// Scrape tells Prometheus what Status tells.
func (e *Engine) Scrape(s *metrics.Sink) error {
	st := e.Status()
	s.Flag("synced", "1 if this node holds the cluster's connections.", st.Synced)
	s.Flag("degraded", "1 if capture or injection does not work as it should.", st.Degraded != "")
	s.Gauge("mirror_connections", "Connections in the mirror.", float64(st.Connections.Mirror))
	for _, x := range []struct {
		kind string
		n    int
	}{{"active", st.Connections.Active}, {"inactive", st.Connections.Inactive}, {"template", st.Connections.Templates}} {
		s.Gauge("owned_connections", "Connections that this director told last: summed over directors, each counts once.", float64(x.n), "kind", x.kind)
	}
	s.Counter("filtered_total", "Records of services that are not mirrored.", st.Filtered)
	s.Gauge("mirror_limit", "Connections that the mirror takes.", float64(st.Connections.Limit))
	s.Gauge("mirror_tombstones", "Deleted connections still remembered.", float64(st.Connections.Tombstones))
	s.Counter("mirror_expired_total", "Connections that left the mirror at their deadline.", e.expired.Load())
	s.Gauge("kernel_connections", "Connections that the kernel counts at real servers.", float64(st.Connections.Kernel))
	s.Gauge("kernel_table_buckets", "Buckets of the kernel's connection table.", float64(st.Connections.Buckets))
	s.Counter("kernel_captured_total", "Records that the kernel told.", st.Kernel.Captured)
	s.Counter("kernel_found_total", "Connections that the kernel held when this node started, or told of late.", st.Kernel.Found)
	s.Counter("kernel_held_back_total", "Records not injected since their real server was unknown here.", st.Kernel.HeldBack)
	s.Counter("kernel_injected_total", "Records that the kernel was told.", st.Kernel.Injected)
	s.Counter("kernel_reinjected_total", "Connections told again, since the kernel lacked them or their real server appeared.", st.Kernel.Reinjected)
	s.Counter("kernel_drops_total", "Records lost on the way to or from the kernel.", st.Kernel.Drops)
	s.Counter("kernel_outrun_total", "Peers' records not injected since newer state was here.", e.outrun.Load())
	s.Gauge("kernel_waiting", "Records that wait to be injected.", float64(st.Kernel.Waiting))
	s.Counter("shed_total", "Connections that a full mirror did not take, or gave up for others.", st.Kernel.Shed)
	s.Counter("sent_datagrams_total", "Datagrams of records sent to the peers.", st.Sent.Datagrams)
	s.Counter("sent_records_total", "Records sent to the peers.", st.Sent.Records)
	for i := range e.outcomes {
		s.Counter("records_total", "Peers' records by what became of them.", e.outcomes[i].Load(), "outcome", conntable.Outcome(i).String())
	}
	e.session.Drops(func(why string, n uint64) {
		s.Counter("drops_total", "What was discarded, by reason.", n, "reason", why)
	})
	st.scrapeAudit(s)
	st.scrapePeers(s)
	e.bridge.scrape(s)
	return nil
}

func (st *Status) scrapePeers(s *metrics.Sink) {
	for i := range st.Peers {
		s.Flag("peer_up", "1 if the peer is heard.", st.Peers[i].State != "silent", "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Gauge("peer_lag_seconds", "Age of the oldest datagram that is missing.", st.Peers[i].LagMS/1000, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Counter("peer_received_total", "Records received.", st.Peers[i].Received, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Counter("peer_lost_total", "Datagrams that were missing.", st.Peers[i].Lost, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Counter("peer_repaired_total", "Datagrams that were missing and resent.", st.Peers[i].Repaired, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Counter("peer_mended_total", "Records that came because tables differed.", st.Peers[i].Mended, "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		s.Gauge("peer_drift", "Differences between the peer's services and real servers and ours.", float64(len(st.Peers[i].Drift)), "peer", st.Peers[i].Name)
	}
	for i := range st.Peers {
		if eq := st.Peers[i].DigestEqual; eq != nil {
			s.Flag("peer_digest_equal", "1 if the peer's table was equal at the last comparison.", *eq, "peer", st.Peers[i].Name)
		}
	}
}
