package director

import (
	"context"
	"reflect"
	"time"

	"saru/internal/metrics"
)

// scrapeWithin bounds how long a scrape waits for the engine.
const scrapeWithin = 3 * time.Second

// scrape tells Prometheus what status tells.
func (d *daemon) scrape(s *metrics.Sink) error {
	ctx, cancel := context.WithTimeout(s.Context(), scrapeWithin)
	defer cancel()
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	st.scrape(s)
	return nil
}

func (st *Status) scrape(s *metrics.Sink) {
	for _, state := range []string{"joining", "ready", "degraded", "draining", "fenced", "left"} {
		s.Flag("state", "1 for the state that this director is in.", st.State == state, "state", state)
	}
	s.Flag("frozen", "1 while planned moves are stopped.", st.Frozen)
	s.Flag("master", "1 if this director is the master.", st.Master == st.Node)
	s.Gauge("epoch", "The assignment's epoch; it only grows.", float64(st.Epoch))
	s.Gauge("members_heard", "Directors heard, this one included.", float64(st.Quorum.Have))
	s.Gauge("share_buckets", "Buckets open here.", float64(st.Share.Buckets))
	s.Gauge("share_buckets_all", "Buckets that there are.", float64(st.Share.Total))
	s.Gauge("lease_left_seconds", "For how long acceptance goes on without another grant.", st.Share.LeaseLeftMS/1000)
	s.Counter("accepted_packets_total", "Packets admitted as this director's.", st.Filter.Accepted)
	s.Counter("dropped_packets_total", "Packets left to others, or without a lease.", st.Filter.Dropped)
	s.Counter("lapsed_packets_total", "Packets dropped for want of a lease.", st.Filter.Lapsed)
	s.Counter("own_mac_packets_total", "Packets for a virtual address sent to the own MAC.", st.Filter.Own)
	s.Counter("leaked_packets_total", "Under LVS-NAT: replies of real servers to nothing that is known, dropped.", st.Filter.Leaks)
	s.Counter("silenced_packets_total", "Unknown mid-stream packets met with silence.", st.Filter.Silenced)
	s.Counter("forwarded_packets_total", "Packets handed to the director of their bucket.", st.Filter.Forwarded)
	s.Counter("queue_overrun_packets_total", "Packets dropped because user space could not judge them in time.", st.Filter.Overruns)
	s.Counter("flooded_bytes_total", "Bytes to the shared MAC that were judged; about the same on every director.", st.Filter.Bytes)
	s.Gauge("lan_troubles", "What is wrong with the LAN, in number; status says what.", float64(len(st.LAN)))
	s.Counter("stranger_claims_total", "Claims of others that a virtual address is theirs.", st.StrangerClaims)
	s.Counter("filter_resets_total", "Times that the table was found changed by others.", st.Filter.Resets)
	s.Gauge("worst_tick_seconds", "By how much a tick was ever late.", st.Engine.WorstTickMS/1000)
	s.Counter("stand_in_turns_total", "Turns of the protocol done while the kernel held up the engine's own thread.", st.Engine.StandInTurns)
	for _, p := range st.Paths {
		s.Counter("path_sent_total", "Messages sent, by path.", p.Sent, "path", p.Name)
		s.Counter("path_received_total", "Messages received, by path.", p.Received, "path", p.Name)
		s.Counter("path_refused_total", "Messages that did not open, by path.", p.Refused, "path", p.Name)
	}
	stats := reflect.ValueOf(st.Protocol)
	for i := range stats.NumField() {
		s.Counter("protocol_total", "What the protocol saw and did.", stats.Field(i).Uint(), "event", stats.Type().Field(i).Name)
	}
}
