package director

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

const barWidth = 24

// Print draws the status for people: first whether all is well, then what is
// not and why, then who has what, and what changed last.
func (st *Status) Print(w io.Writer) error {
	fmt.Fprintf(w, "cluster %s, seen by %s: %s\n", st.Cluster, st.Node, st.verdict())
	for _, t := range st.troubles() {
		fmt.Fprintf(w, "  ! %s\n", t)
	}
	fmt.Fprintln(w)
	if err := st.printMembers(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nmaster  %s, epoch %d.%d; quorum %s\n", orNone(st.Master), st.Epoch>>32, st.Epoch&0xffffffff, st.Quorum.text())
	st.printShare(w)
	st.printOthers(w)
	fmt.Fprintf(w, "syncd   %s\n", orNone(st.Syncd))
	for _, p := range st.Paths {
		fmt.Fprintf(w, "path    %-6s sent %d, received %d, refused %d, unsent %d\n", p.Name, p.Sent, p.Received, p.Refused, p.Unsent)
	}
	return st.printChanges(w, time.Now())
}

// verdict says in one line how the share is served.
func (st *Status) verdict() string {
	if len(st.Share.Addresses) == 0 && st.Role != "witness" {
		return "no addresses are configured in [share], membership only"
	}
	open, serving, directors := 0, 0, 0
	for _, m := range st.Members {
		open += m.Buckets
		if m.Buckets > 0 {
			serving++
		}
		if m.Role != "witness" && m.State != "left" {
			directors++
		}
	}
	total := st.Share.Total
	if st.Role == "witness" {
		return fmt.Sprintf("%d of %d directors serve %d buckets", serving, directors, open)
	}
	switch {
	case open == total:
		return fmt.Sprintf("all %d buckets have an acceptor; %d of %d directors serve", total, serving, directors)
	case open == 0:
		return fmt.Sprintf("NOBODY serves any of the %d buckets", total)
	case open < total:
		return fmt.Sprintf("%d of %d buckets have NO ACCEPTOR; %d of %d directors serve", total-open, total, serving, directors)
	}
	return fmt.Sprintf("the share is moving; %d of %d directors serve", serving, directors)
}

// troubles says what needs attention here, and what to do about it. What is
// wrong with a member stands beside it.
func (st *Status) troubles() (all []string) {
	add := func(when bool, format string, args ...any) {
		if when {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	add(st.State != "ready" && st.State != "left", "this node is %s%s", st.State, because(st.Why))
	for _, s := range st.Strangers {
		add(true, "%s says that %s is its own, and is no director of this cluster: take the address off it", s.MAC, s.Addr)
	}
	for i := range st.Foreigners {
		add(true, "%s", st.Foreigners[i].text())
	}
	for _, says := range st.LAN {
		add(true, "%s", says)
	}
	add(st.Frozen, "planned moves are stopped until 'saru unfreeze'; failures still move shares")
	if len(st.Share.Addresses) > 0 {
		add(st.Filter.Why != "", "the kernel's filter cannot be read: %s", st.Filter.Why)
		add(st.Filter.Why == "" && !st.Filter.Intact, "somebody else changed the kernel's table; it is closed, and opens again when granted")
		add(st.Filter.Own > 0, "%d packets came to this node's own MAC, last from %s: its ARP entry is old", st.Filter.Own, st.Filter.OwnSender)
		add(st.Filter.Overruns > 0, "%d packets were dropped because the queues were full", st.Filter.Overruns)
		add(st.Share.ServicesWhy != "", "services are divided as before: %s", st.Share.ServicesWhy)
		add(st.Share.Buckets > 0 && st.Share.LeaseLeftMS == 0, "%d buckets are open here without a lease, so nothing is accepted", st.Share.Buckets)
	}
	add(!st.Engine.Realtime, "the engine has no real-time priority, so load can look like death; the log says why")
	return all
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func (st *Status) printMembers(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MEMBER\tADDRESS\tSTATE\tWEIGHT\tBUCKETS\tSHARE\tHEARD\tWHY")
	for i := range st.Members {
		m := &st.Members[i]
		name, heard := m.Name, "here"
		if m.Name == st.Master {
			name += " *"
		}
		if i > 0 {
			heard = ago(time.Duration(m.SilentMS * float64(time.Millisecond)))
		}
		if m.State == "unheard" {
			heard = "never"
		}
		bar := strings.Repeat(" ", barWidth)
		if m.Role != "witness" {
			bar = bars(m.Buckets, st.Share.Total)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", name, m.Addr, m.State, m.Weight, m.Buckets, bar, heard, m.Why)
	}
	return tw.Flush()
}

// bars draws a part of a whole; a part that is not nothing shows.
func bars(part, whole int) string {
	full := 0
	if whole > 0 {
		full = (part*barWidth + whole/2) / whole
	}
	if part > 0 {
		full = max(full, 1)
	}
	full = min(full, barWidth)
	return strings.Repeat("#", full) + strings.Repeat(".", barWidth-full)
}

// ago tells a time since in one or two figures.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms ago", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	}
	return fmt.Sprintf("%d h ago", int(d.Hours()))
}

func (st *Status) printShare(w io.Writer) {
	switch {
	case st.Role == "witness":
		fmt.Fprintf(w, "share   none: a witness only votes\n")
	case len(st.Share.Addresses) > 0:
		s, f := &st.Share, &st.Filter
		fmt.Fprintf(w, "share   %s on %s, target %s; %d of %d buckets here, by %s\n", strings.Join(s.Addresses, ", "), s.Interface, s.Target, s.Buckets, s.Total, s.Sense)
		for _, v := range s.Services {
			fmt.Fprintf(w, "divided %s by %s: %s\n", v.Service, v.Sense, v.Why)
		}
		fmt.Fprintf(w, "lease   %g ms, %g ms left\n", s.LeaseMS, s.LeaseLeftMS)
		fmt.Fprintf(w, "filter  accepted %d, dropped %d, silenced %d packets; replaced %d times\n", f.Accepted, f.Dropped, f.Silenced, f.Resets)
	}
}

func (st *Status) printChanges(w io.Writer, now time.Time) error {
	if len(st.Changes) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nLAST CHANGES ('saru events' has more)")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := range st.Changes {
		c := &st.Changes[i]
		fmt.Fprintf(tw, "%s\t%s\t%s\n", c.Time.Local().Format("15:04:05.000"), ago(max(0, now.Sub(c.Time))), c.Text)
	}
	return tw.Flush()
}

func (q *QuorumStatus) text() string {
	if q.Need > 1 {
		return fmt.Sprintf("%s, %d voters heard, %d needed", q.Policy, q.Have, q.Need)
	}
	return fmt.Sprintf("%s, %d heard", q.Policy, q.Have)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
