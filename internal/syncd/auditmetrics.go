package syncd

import "saru/internal/metrics"

// scrapeAudit tells how kernel and mirror were made equal, and what the peers
// were spared.
func (st *Status) scrapeAudit(s *metrics.Sink) {
	a := &st.Audit
	s.Counter("audit_passes_total", "Times that the kernel's table was compared with the mirror.", a.Passes)
	s.Gauge("audit_pass_seconds", "How long the last comparison took.", a.PassS)
	s.Gauge("audit_cpu_share", "Share of one core that comparing takes.", a.CPUShare)
	for _, x := range []struct {
		what string
		n    uint64
	}{{"told", a.Told}, {"gone", a.Gone}, {"reinjected", a.Reinjected}, {"deleted", a.Deleted}} {
		s.Counter("audit_mended_total", "Connections in which kernel and mirror differed, by what was done.", x.n, "what", x.what)
	}
	s.Gauge("audit_entries", "Entries of the kernel's table in the last comparison.", float64(a.Entries))
	s.Counter("audit_cut_short_total", "Comparisons that ended with an error.", a.CutShort)
	s.Gauge("held_connections", "Connections of the mirror whose real server the kernel does not know.", float64(a.Held))
	s.Counter("template_conflicts_total", "Persistence templates for which two directors had chosen different real servers.", st.Templates.Conflicts)
	s.Counter("template_conflicts_left_total", "Of these, templates left alone since too many were being mended.", st.Templates.Left)
	s.Gauge("ownership_shares", "Of how many shares saru tells what is served here.", float64(st.Ownership.Shares))
	s.Flag("ownership_known", "1 if saru tells which connections are active here.", st.Ownership.Known)
	s.Counter("contested_total", "Peers' records refused, of connections that are served here.", st.Ownership.Contested)
	s.Counter("refreshes_suppressed_total", "Refreshes that the peers need not hear of.", st.Sent.Suppressed)
	s.Counter("retold_total", "Connections told again lest the peers let them die.", st.Sent.Retold)
	s.Gauge("refresh_round_seconds", "How long it takes to look through the mirror for refreshes that are due.", st.Sent.RoundS)
	s.Counter("handshakes_told_total", "Half-open connections told since saru gave buckets away.", st.Sent.Handshakes)
}
