package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"saru/test/traffic"
)

// A Sample is what was seen at one moment.
type Sample struct {
	At       time.Time
	Bytes    int64
	Lines    int64
	Short    int64
	Failed   int64
	Open     int            // long flows
	Lost     int            // long flows, so far
	Shares   map[string]int // buckets open on each living director
	Accident string         // what was done to the cluster just then
}

// A Failover is one power cut and what became of it.
type Failover struct {
	Director  string
	Cut       time.Time
	Detected  time.Duration // until a survivor no longer counted it as alive
	TakenOver time.Duration // until the survivors had every bucket open
	Returned  time.Duration // until it held a share again
	Open      int           // flows established for more than Age at the cut
	Lost      int           // of those, lost before the next cut
	Stall     time.Duration // the longest that a flow saw
	Reasons   map[string]int
}

// A Report is a whole run.
type Report struct {
	Plan      Plan
	Kernel    string
	Start     time.Time
	End       time.Time
	Failovers []Failover
	Flows     []traffic.Flow
	Short     traffic.ShortStats
	Samples   []Sample
}

// Age is how long a flow must have been established when the power went for
// its survival to be promised.
const Age = time.Second

// judge fills in what the flows' stories say of each failover.
func (r *Report) judge() {
	for i := range r.Failovers {
		fo := &r.Failovers[i]
		until := r.End
		if i+1 < len(r.Failovers) {
			until = r.Failovers[i+1].Cut
		}
		fo.Open, fo.Lost, fo.Stall, fo.Reasons = 0, 0, 0, map[string]int{}
		for j := range r.Flows {
			f := &r.Flows[j]
			if !f.OpenAt(fo.Cut, Age) {
				continue
			}
			fo.Open++
			fo.Stall = max(fo.Stall, f.LongestStall(fo.Cut, until, r.End))
			if f.Lost != "" && f.Ended.Before(until) {
				fo.Lost++
				fo.Reasons[f.Lost]++
			}
		}
	}
}

// Lost returns the flows that were established for more than Age at some cut
// and were lost afterwards.
func (r *Report) Lost() []traffic.Flow {
	return slices.DeleteFunc(slices.Clone(r.Flows), func(f traffic.Flow) bool {
		return f.Lost == "" || !slices.ContainsFunc(r.Failovers, func(fo Failover) bool { return f.OpenAt(fo.Cut, Age) })
	})
}

// Err returns nil if the run kept the promise: every flow that was
// established for more than Age when the power went lived on with the right
// bytes, nothing else was lost, and every director came back.
func (r *Report) Err() error {
	if len(r.Failovers) < r.Plan.Cuts {
		return fmt.Errorf("%d of %d failovers were made", len(r.Failovers), r.Plan.Cuts)
	}
	lost := r.Lost()
	if len(lost) > 0 {
		return fmt.Errorf("%d flows were lost, the first a %s from %s: %s", len(lost), lost[0].Kind, lost[0].Local, lost[0].Lost)
	}
	for i := range r.Flows {
		if f := &r.Flows[i]; strings.HasPrefix(f.Lost, "wrong bytes") {
			return fmt.Errorf("a %s from %s: %s", f.Kind, f.Local, f.Lost)
		}
	}
	want := r.Plan.Downloads + r.Plan.Quiet4 + r.Plan.Quiet45
	for i, fo := range r.Failovers {
		// On a slow machine downloads end before the last cut, and others begin.
		if fo.Open < want/2 {
			return fmt.Errorf("failover %d met %d open flows of %d planned: too few to show anything", i+1, fo.Open, want)
		}
	}
	return nil
}

// Print writes the report's end as text.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, "\n  #  director  detected  taken over  back with a share  flows open  lost  longest stall\n")
	for i, fo := range r.Failovers {
		fmt.Fprintf(w, "  %d  %-8s  %8s  %10s  %17s  %10d  %4d  %13s%s\n", i+1, fo.Director,
			show(fo.Detected), show(fo.TakenOver), show(fo.Returned), fo.Open, fo.Lost, show(fo.Stall), reasons(fo.Reasons))
	}
	r.printStalls(w)
	var bytes, lines int64
	var downloads, quiet, abandoned int
	done := map[traffic.Kind]int{}
	for i := range r.Flows {
		f := &r.Flows[i]
		bytes, lines = bytes+f.Bytes, lines+f.Lines
		if f.Abandoned {
			abandoned++
		}
		if f.Kind == traffic.Download {
			downloads++
		} else {
			quiet++
		}
		if f.Lost == "" && !f.Abandoned {
			done[f.Kind]++
		}
	}
	late := ""
	if abandoned > 0 {
		late = fmt.Sprintf(", %d begun late and not waited for", abandoned)
	}
	fmt.Fprintf(w, "\n  downloads          %d opened, %d whole%s; %.1f MB received and verified\n", downloads, done[traffic.Download], late, float64(bytes)/1e6)
	fmt.Fprintf(w, "  quiet connections  %d opened, %d alive to the end; %d lines exchanged\n", quiet, done[traffic.Quiet], lines)
	fmt.Fprintf(w, "  short requests     %d answered, %d failed for good, %d retried, slowest %s%s\n",
		r.Short.Done, r.Short.Failed, r.Short.Retried, show(r.Short.Slowest), reasons(r.Short.Reasons))
	fmt.Fprintf(w, "  lost               %d flows of those established for more than %v at a power cut\n", len(r.Lost()), Age)
}

// longStall is from when on a stall asks for an explanation: more than a
// detection, a takeover and a retransmission take.
const longStall = 5 * time.Second

// stallLines bounds how many long stalls are printed.
const stallLines = 10

// printStalls lists the long stalls, so that their flows can be found in the
// daemons' logs.
func (r *Report) printStalls(w io.Writer) {
	n := 0
	for i := range r.Flows {
		f := &r.Flows[i]
		for _, s := range f.Stalls {
			if s.Length < longStall {
				continue
			}
			if n++; n <= stallLines {
				from := s.Start.Sub(r.Start).Seconds()
				fmt.Fprintf(w, "\n  stalled: %s %d (%s) from %.1f s to %.1f s", f.Kind, f.ID, f.Local, from, from+s.Length.Seconds())
			}
		}
	}
	if n > 0 {
		fmt.Fprintf(w, "\n  %d stalls of more than %v\n", n, longStall)
	}
}

func show(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func reasons[N int | int64](m map[string]N) string {
	if len(m) == 0 {
		return ""
	}
	var parts []string
	for why, n := range m {
		parts = append(parts, fmt.Sprintf("%d %s", n, why))
	}
	slices.Sort(parts)
	return "  (" + strings.Join(parts, ", ") + ")"
}
