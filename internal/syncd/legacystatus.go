package syncd

import (
	"fmt"
	"io"

	"saru/internal/metrics"
)

// LegacyStatus says what passes between us and directors that speak the
// kernel's own sync protocol, in records.
type LegacyStatus struct {
	Interface string `json:"interface"`
	SyncID    uint8  `json:"syncid"`
	Down      string `json:"down,omitempty"` // why nothing passes, if so
	Heard     uint64 `json:"heard"`          // from legacy directors
	Taken     uint64 `json:"taken"`          // of those, news
	Told      uint64 `json:"told"`           // to them
	Again     uint64 `json:"again"`          // of those, repeated since nobody there repairs losses
	Passes    uint64 `json:"passes"`         // that everything was told in
	// What was not taken, by reason.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// legacyDrops calls yield with each reason and how many records, or datagrams
// where the reason begins so, were dropped for it.
func (b *Bridge) legacyDrops(yield func(why string, n uint64)) {
	st := b.link.Stats()
	d := &st.Decoded
	for _, x := range [...]struct {
		why string
		n   uint64
	}{
		{"syncd", st.Syncd},
		{"known", b.same.Load()},
		{"older", b.old.Load()},
		{"unknown_service", b.stranger.Load()},
		{"served_here", b.served.Load()},
		{"unsound", b.strange.Load()},
		{"full", b.full.Load()},
		{"flood", st.Flood},
		{"unsayable", st.Untold},
		{"record", d.UnknownOption + d.Protocol + d.State + d.OnePacket + d.Template + d.PE},
		{"datagram_syncid", d.SyncID},
		{"datagram_malformed", d.Short + d.Size + d.Record + d.Version + d.Type + d.Option},
		{"datagram_send", st.Failed},
	} {
		yield(x.why, x.n)
	}
}

// Status returns the present status.
func (b *Bridge) Status() *LegacyStatus {
	st := b.link.Stats()
	out := &LegacyStatus{
		Interface: b.Interface, SyncID: b.SyncID, Down: st.Down, Heard: st.Heard, Taken: b.taken.Load(), Told: st.Told,
		Again: b.refreshed.Load(), Passes: b.passes.Load(), Drops: map[string]uint64{},
	}
	b.legacyDrops(func(why string, n uint64) {
		if n > 0 {
			out.Drops[why] = n
		}
	})
	return out
}

func (l *LegacyStatus) print(w io.Writer) {
	if l == nil {
		return
	}
	fmt.Fprintf(w, "  legacy       on %s, syncid %d: %d records heard, %d of them news; %d told, %d of them again\n",
		l.Interface, l.SyncID, l.Heard, l.Taken, l.Told, l.Again)
	if l.Down != "" {
		fmt.Fprintf(w, "  LEGACY SYNC IS CUT: %s\n", l.Down)
	}
	if s := listCounts(l.Drops); s != "" {
		fmt.Fprintf(w, "               not taken: %s\n", s)
	}
}

func (b *Bridge) scrape(s *metrics.Sink) {
	if b == nil {
		return
	}
	st := b.Status()
	s.Flag("legacy_up", "1 if legacy directors can be heard and told.", st.Down == "")
	s.Counter("legacy_heard_total", "Records heard of legacy directors.", st.Heard)
	s.Counter("legacy_taken_total", "Records of legacy directors that were news.", st.Taken)
	s.Counter("legacy_told_total", "Records told to legacy directors.", st.Told)
	s.Counter("legacy_again_total", "Of those told, repetitions.", st.Again)
	s.Counter("legacy_passes_total", "Times that everything was told to legacy directors.", st.Passes)
	b.legacyDrops(func(why string, n uint64) {
		s.Counter("legacy_drops_total", "What of legacy directors' words was not taken, by reason.", n, "reason", why)
	})
}
