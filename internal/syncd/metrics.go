package syncd

import (
	"saru/internal/metrics"
	"saru/syncproto/peer"
)

// Scrape tells Prometheus what Status tells.
func (e *Engine) Scrape(s *metrics.Sink) error {
	st := e.Status()
	st.scrape(s)
	s.Counter("mirror_expired_total", "Connections that left the mirror at their deadline.", e.expired.Load())
	s.Counter("kernel_outrun_total", "Peers' records not injected since newer state was here.", e.outrun.Load())
	e.session.Drops(func(why string, n uint64) {
		s.Counter("drops_total", "What was discarded, by reason.", n, "reason", why)
	})
	for why, n := range e.kernel.Stats().Malformed {
		s.Counter("drops_total", "What was discarded, by reason.", n, "reason", why)
	}
	e.bridge.scrape(s)
	return nil
}

func (st *Status) scrape(s *metrics.Sink) {
	s.Flag("synced", "1 if this node holds the cluster's connections.", st.Synced)
	s.Flag("degraded", "1 if capture or injection does not work as it should.", st.Degraded != "")
	s.Gauge("uptime_seconds", "Since this node started.", st.UptimeS)
	s.Counter("filtered_total", "Records of services that are not mirrored.", st.Filtered)
	for outcome, n := range st.Records {
		s.Counter("records_total", "Peers' records by what became of them.", n, "outcome", outcome)
	}
	s.Counter("sent_datagrams_total", "Datagrams of records sent to the peers.", st.Sent.Datagrams)
	s.Counter("sent_records_total", "Records sent to the peers.", st.Sent.Records)
	st.Connections.scrape(s)
	st.Kernel.scrape(s)
	st.scrapeAudit(s)
	st.Defer.scrape(s)
	st.scrapePeers(s)
}

func (c *ConnectionCounts) scrape(s *metrics.Sink) {
	s.Gauge("mirror_connections", "Connections in the mirror.", float64(c.Mirror))
	s.Gauge("mirror_limit", "Entries that the mirror takes.", float64(c.Limit))
	s.Gauge("mirror_tombstones", "Deleted connections still remembered.", float64(c.Tombstones))
	for _, x := range []struct {
		kind string
		n    int
	}{{"active", c.Active}, {"inactive", c.Inactive}, {"template", c.Templates}} {
		s.Gauge("owned_connections", "Connections that this director told last: summed over directors, each counts once.", float64(x.n), "kind", x.kind)
	}
	s.Gauge("kernel_connections", "Connections that the kernel counts at real servers.", float64(c.Kernel))
	s.Gauge("kernel_table_buckets", "Buckets of the kernel's connection table.", float64(c.Buckets))
}

func (k *KernelCounts) scrape(s *metrics.Sink) {
	s.Counter("kernel_captured_total", "Records that the kernel told.", k.Captured)
	s.Counter("kernel_found_total", "Connections that the kernel held when this node started, or told of late.", k.Found)
	s.Counter("kernel_held_back_total", "Records not injected since their real server was unknown here.", k.HeldBack)
	s.Counter("kernel_injected_total", "Records that the kernel was told.", k.Injected)
	s.Counter("kernel_reinjected_total", "Connections told again, since the kernel lacked them or their real server appeared.", k.Reinjected)
	s.Counter("kernel_drops_total", "Records lost on the way to or from the kernel.", k.Drops)
	s.Gauge("kernel_waiting", "Records that wait to be injected.", float64(k.Waiting))
	s.Counter("shed_total", "Connections of ours that a full mirror did not take, and any that it gave up for others.", k.Shed)
}

func (st *Status) scrapePeers(s *metrics.Sink) {
	for i := range st.Peers {
		scrapePeer(s, &st.Peers[i])
	}
}

func scrapePeer(s *metrics.Sink, p *peer.PeerStatus) {
	of := []string{"peer", p.Name}
	s.Flag("peer_up", "1 if the peer is heard.", p.State != "silent", of...)
	s.Flag("peer_synced", "1 if the peer says that it holds the cluster's connections.", p.Synced, of...)
	s.Gauge("peer_heard_seconds", "Since the peer's last heartbeat.", p.HeardMS/1000, of...)
	s.Gauge("peer_connections", "Connections that the peer says it has.", float64(p.Connections), of...)
	s.Gauge("peer_protocol_version", "The highest version of the protocol that the peer understands.", float64(p.Version), of...)
	s.Gauge("peer_lag_seconds", "Age of the oldest datagram that is missing.", p.LagMS/1000, of...)
	s.Counter("peer_received_total", "Records received.", p.Received, of...)
	s.Counter("peer_lost_total", "Datagrams that were missing.", p.Lost, of...)
	s.Counter("peer_repaired_total", "Datagrams that were missing and resent.", p.Repaired, of...)
	s.Gauge("peer_missing_datagrams", "Datagrams that are missing still.", float64(p.Missing), of...)
	s.Counter("peer_repairs_total", "Times that tables differed and were mended.", p.Repairs, of...)
	s.Counter("peer_mended_total", "Records that came because tables differed.", p.Mended, of...)
	s.Counter("peer_pulled_total", "Records that came in bulk.", p.Pulled, of...)
	s.Gauge("peer_pull_records", "Records that came so far by the pull that goes on, or by the last one.", float64(p.PullDone), of...)
	s.Gauge("peer_pull_connections", "Connections that the peer had when that pull began.", float64(p.PullTotal), of...)
	s.Counter("peer_restarts_total", "Times that the peer began anew.", p.Restarts, of...)
	s.Gauge("peer_datagram_bytes", "The largest datagram from here that the peer got lately.", float64(p.Datagram), of...)
	s.Flag("peer_alone", "1 if the peer is sent its datagrams alone, not by the group.", p.Path == "alone", of...)
	s.Gauge("peer_drift", "Differences between the peer's services and real servers and ours.", float64(len(p.Drift)), of...)
	if p.DigestEqual != nil {
		s.Flag("peer_digest_equal", "1 if the peer's table was equal at the last comparison.", *p.DigestEqual, of...)
	}
}
