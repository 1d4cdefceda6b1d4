package syncd

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"saru/conntable"
	"saru/syncproto/peer"
)

// Status is what GET /status answers and `syncd status --json` prints.
type Status struct {
	Node        string            `json:"node"`
	Synced      bool              `json:"synced"`
	Source      string            `json:"source"`             // how the kernel is read: daemon or module
	Degraded    string            `json:"degraded,omitempty"` // what is wrong with it
	NotCovered  []string          `json:"not_covered"`        // what cannot be had this way
	Warnings    []string          `json:"warnings,omitempty"` // of the peers and the ways to them
	Filter      string            `json:"filter,omitempty"`   // services that are mirrored; empty: all
	Filtered    uint64            `json:"filtered"`           // records of other services
	UptimeS     float64           `json:"uptime_s"`
	Connections ConnectionCounts  `json:"connections"`
	Peers       []peer.PeerStatus `json:"peers"`
	Kernel      KernelCounts      `json:"kernel"`
	Audit       AuditCounts       `json:"audit"`     // of the kernel's table against the mirror
	Ownership   OwnershipStatus   `json:"ownership"` // of connections
	Templates   TemplateCounts    `json:"templates"` // that directors disagreed on
	Sent        SentCounts        `json:"sent"`
	Defer       *DeferCounts      `json:"defer,omitempty"`  // null: off
	Legacy      *LegacyStatus     `json:"legacy,omitempty"` // null: off
	Records     map[string]uint64 `json:"records"`          // the peers' records, by what became of them
	Drops       map[string]uint64 `json:"drops,omitempty"`  // what was discarded, by reason
}

// ConnectionCounts says how many connections are where.
type ConnectionCounts struct {
	Mirror     int `json:"mirror"`
	Kernel     int `json:"kernel"` // counted at real servers; what is not bound to one is not in it
	Tombstones int `json:"tombstones"`
	Limit      int `json:"limit"`   // of the mirror
	Buckets    int `json:"buckets"` // of the kernel's table
	// Told last by this node: over all directors each connection counts once.
	Owned     int `json:"owned"`           // those of Active, Inactive and Templates
	Active    int `json:"owned_active"`    // as real servers count them
	Inactive  int `json:"owned_inactive"`  // likewise
	Templates int `json:"owned_templates"` // of persistence
}

// crowdedAt is how many entries a bucket of the kernel's table may have on
// average.
const crowdedAt = 2

// crowded says if the kernel's table has too few buckets for what it holds or
// is about to.
func (c *ConnectionCounts) crowded() string {
	n := max(c.Mirror, c.Kernel)
	if c.Buckets == 0 || n <= crowdedAt*c.Buckets {
		return ""
	}
	return fmt.Sprintf("the kernel's table has %d buckets for %d connections, and each packet walks one: "+
		"set 'options ip_vs conn_tab_bits=20' in /etc/modprobe.d/ip_vs.conf, drain, and load the module anew", c.Buckets, n)
}

// fullAt is at how many hundredths of its limit the mirror is nearly full.
const fullAt = 95

// full says if the mirror has no room for new connections, or soon will not.
func (c *ConnectionCounts) full() string {
	n := c.Mirror + c.Tombstones
	if n == 0 || int64(n)*100 < int64(c.Limit)*fullAt {
		return ""
	}
	return fmt.Sprintf("the mirror has %d entries, deleted ones included, and room for %d: a full one does not tell the peers of some "+
		"connections. Set kernel.limit higher, at 60 bytes an entry, and restart syncd", n, c.Limit)
}

// KernelCounts says what passed between us and the kernel, in records.
type KernelCounts struct {
	Captured   uint64 `json:"captured"`
	Found      uint64 `json:"found"` // held by the kernel when we started
	Injected   uint64 `json:"injected"`
	Drops      uint64 `json:"drops"` // the kernel lost them or did not take them
	Reinjected uint64 `json:"reinjected"`
	HeldBack   uint64 `json:"held_back"` // records not injected since their real server was unknown here
	Shed       uint64 `json:"shed"`      // connections of ours that a full mirror did not take, and any that it gave up for others
	Waiting    int    `json:"waiting"`
}

// OwnershipStatus says how it is known which connections are active here.
type OwnershipStatus struct {
	Known     bool   `json:"known"`     // saru tells; else versions decide
	Shares    int    `json:"shares"`    // of how many shares
	Contested uint64 `json:"contested"` // peers' records refused, of connections that are served here
}

// TemplateCounts says how often two directors had chosen different real
// servers for one client, and how often that was left alone since too many
// were being mended.
type TemplateCounts struct {
	Conflicts uint64 `json:"conflicts"`
	Left      uint64 `json:"left"`
}

// SentCounts says what the peers were told.
type SentCounts struct {
	Datagrams  uint64 `json:"datagrams"`
	Records    uint64 `json:"records"`
	Suppressed uint64 `json:"suppressed"` // refreshes that the peers need not hear of
	Retold     uint64 `json:"retold"`     // connections told again lest the peers let them die
	Handshakes uint64 `json:"handshakes"` // half-open connections told since saru gave buckets away
	// How long it takes to look through the mirror for what the peers must be
	// told: a refresh may come so much late.
	RoundS float64 `json:"refresh_round_s"`
}

// Status returns the present status. It does not look at all connections.
func (e *Engine) Status() Status {
	k := e.kernel.Stats()
	waiting, _ := e.toKernel.progress()
	st := Status{
		Node: e.node, Synced: e.Synced(), Source: k.Source, Degraded: k.Degraded, NotCovered: slices.Concat(k.NotCovered, noSourceCovers),
		Filter: e.filter.Load().String(), Filtered: e.filtered.Load(),
		UptimeS: time.Since(e.started).Round(time.Millisecond).Seconds(),
		Connections: ConnectionCounts{
			Mirror: e.table.Len(), Tombstones: e.table.Tombstones(), Limit: e.table.Limit(),
		},
		Peers: e.session.Peers(), Warnings: slices.Concat(e.finding.warnings(), k.Warnings, e.session.Warnings()),
		Kernel: KernelCounts{
			Captured: e.captured.Load(), Found: e.found.Load(), Injected: e.injected.Load(),
			Drops: k.Drops + e.refused.Load(), Reinjected: e.reinjected.Load(), Shed: e.shed.Load() + e.table.Shed(), Waiting: waiting,
		},
		Records: map[string]uint64{}, Drops: map[string]uint64{},
	}
	o := e.table.Owned(e.self)
	st.Connections.Owned, st.Connections.Active, st.Connections.Inactive, st.Connections.Templates = o.Active+o.Inactive+o.Templates, o.Active, o.Inactive, o.Templates
	if e.bridge != nil {
		st.Legacy = e.bridge.Status()
	}
	st.Defer = e.deferral.counts()
	if w := st.Connections.full(); w != "" {
		st.Warnings = append(st.Warnings, w)
	}
	if s := e.services.Load(); s != nil {
		st.Connections.Kernel, st.Connections.Buckets = s.Connections, s.Buckets
		if w := st.Connections.crowded(); w != "" {
			st.Warnings = append(st.Warnings, w)
		}
	}
	shares := e.owner.Shares(time.Now())
	st.Ownership = OwnershipStatus{shares > 0, shares, e.contests.Load()}
	st.Kernel.HeldBack, st.Audit = e.heldBack.Load(), e.audit.Counts()
	st.Templates.Conflicts, st.Templates.Left = e.templates.counts()
	st.Sent.Datagrams, st.Sent.Records = e.session.Sent()
	st.Sent.Suppressed, st.Sent.Retold, st.Sent.Handshakes = e.suppressed.Load(), e.retold.Load(), e.handshakes.Load()
	st.Sent.RoundS = roundTime(e.entries()).Seconds()
	for o := range e.outcomes {
		st.Records[conntable.Outcome(o).String()] = e.outcomes[o].Load()
	}
	e.session.Drops(func(why string, n uint64) {
		if n > 0 {
			st.Drops[why] = n
		}
	})
	for why, n := range k.Malformed {
		if n > 0 {
			st.Drops[why] = n
		}
	}
	return st
}

// Print writes st for people.
func (st *Status) Print(w io.Writer) error {
	ew := &errWriter{w: w}
	fmt.Fprintf(ew, "%s: %s\n\n", st.Node, st.verdict())
	fmt.Fprintf(ew, "  connections  %d in the mirror (limit %d), %d of them this director's own; %d at the kernel's real servers\n",
		st.Connections.Mirror, st.Connections.Limit, st.Connections.Owned, st.Connections.Kernel)
	if st.Filter != "" {
		fmt.Fprintf(ew, "  mirrored     only %s; %d records of others\n", st.Filter, st.Filtered)
	}
	fmt.Fprintf(ew, "  kernel       %d records captured, %d injected, %d injected again, %d dropped, %d waiting; source %s\n",
		st.Kernel.Captured, st.Kernel.Injected, st.Kernel.Reinjected, st.Kernel.Drops, st.Kernel.Waiting, st.Source)
	if st.Kernel.HeldBack > 0 {
		fmt.Fprintf(ew, "  held back    %d records whose real server is unknown here\n", st.Kernel.HeldBack)
	}
	if full := st.Records[conntable.Full.String()]; st.Kernel.Shed > 0 || full > 0 {
		fmt.Fprintf(ew, "  shed         %d connections, and %d records of peers not taken, while the mirror was full\n", st.Kernel.Shed, full)
	}
	st.Defer.print(ew)
	fmt.Fprintf(ew, "  audit        pass %d took %.1f s for %d entries; %d told, %d gone, %d injected again, %d deleted, %d held; %.1f %% of one core\n",
		st.Audit.Passes, st.Audit.PassS, st.Audit.Entries, st.Audit.Told, st.Audit.Gone, st.Audit.Reinjected, st.Audit.Deleted, st.Audit.Held, 100*st.Audit.CPUShare)
	if st.Ownership.Known {
		fmt.Fprintf(ew, "  ownership    told by saru, of %s; %d records of peers refused, of connections that are served here\n",
			number(st.Ownership.Shares, "share"), st.Ownership.Contested)
	} else {
		fmt.Fprintf(ew, "  ownership    guessed by versions: no saru tells what this director serves\n")
	}
	if st.Templates.Conflicts > 0 {
		fmt.Fprintf(ew, "  templates    %d that directors disagreed on, %d of them left alone\n", st.Templates.Conflicts, st.Templates.Left)
	}
	more := ""
	if st.Sent.RoundS > refreshRound.Seconds() {
		more = fmt.Sprintf(", others up to %.0f s late", st.Sent.RoundS)
	}
	if st.Sent.Handshakes > 0 {
		more += fmt.Sprintf(", %d handshakes as buckets moved", st.Sent.Handshakes)
	}
	fmt.Fprintf(ew, "  sent         %d records in %d datagrams, %d refreshes held back%s; up for %v\n",
		st.Sent.Records, st.Sent.Datagrams, st.Sent.Suppressed, more, time.Duration(st.UptimeS*float64(time.Second)).Round(time.Second))
	st.Legacy.print(ew)
	fmt.Fprintln(ew)
	st.printPeers(ew)
	st.printDrops(ew)
	for _, what := range st.NotCovered {
		fmt.Fprintf(ew, "  not covered  %s\n", what)
	}
	return ew.err
}

func (st *Status) verdict() string {
	up := 0
	for i := range st.Peers {
		if st.Peers[i].State != "silent" {
			up++
		}
	}
	var s string
	switch {
	case !st.Synced:
		s = "NOT SYNCED YET: still fetching what the peers hold"
	case len(st.Peers) == 0:
		s = "synced, and alone: no peer was heard"
	case up < len(st.Peers):
		s = fmt.Sprintf("synced; %d of %d peers up", up, len(st.Peers))
	default:
		s = "synced with " + number(up, "peer")
	}
	if st.Degraded != "" {
		s += "\n  DEGRADED: " + st.Degraded
	}
	for _, w := range st.Warnings {
		s += "\n  WARNING: " + w
	}
	return s
}

// number is n of what, in words.
func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (st *Status) printPeers(w io.Writer) {
	if len(st.Peers) == 0 {
		fmt.Fprintln(w, "  no peers")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  PEER\tADDRESS\tSTATE\tBEHIND\tRECEIVED\tLOST\tREPAIRED\tSAME TABLE")
	for i := range st.Peers {
		p := &st.Peers[i]
		same := "not compared yet"
		if p.DigestEqual != nil {
			same = map[bool]string{true: "yes", false: "NO"}[*p.DigestEqual]
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%.0f ms\t%d\t%d\t%d\t%s\n", p.Name, p.Addr, peerState(p), p.LagMS, p.Received, p.Lost, p.Repaired, same)
	}
	t.Flush()
	if st.drift() > 0 {
		fmt.Fprintln(w, "\n  SERVICES DIFFER:")
	}
	for i := range st.Peers {
		for _, line := range st.Peers[i].Drift {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
	for i := range st.Peers {
		if p := &st.Peers[i]; p.Error != "" {
			fmt.Fprintf(w, "  last pull from %s failed: %s\n", p.Name, p.Error)
		}
	}
}

// peerState is how p is, and how far a pull from it has come.
func peerState(p *peer.PeerStatus) string {
	if p.State != "pulling" || p.PullTotal == 0 {
		return p.State
	}
	return fmt.Sprintf("pulling, %d %%", min(99, 100*p.PullDone/uint64(p.PullTotal)))
}

func (st *Status) printDrops(w io.Writer) {
	if s := listCounts(st.Drops); s != "" {
		fmt.Fprintf(w, "\n  dropped      %s\n", s)
	}
}

// listCounts writes counts in a line, by name.
func listCounts(counts map[string]uint64) string {
	var s []string
	for name, n := range counts {
		s = append(s, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(s)
	return strings.Join(s, ", ")
}

// An errWriter remembers the first error.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) Write(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.w.Write(p)
	e.err = err
	return n, err
}
