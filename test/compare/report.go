package compare

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// fixedMS is what the module waits before it tells, whatever the processor.
const fixedMS = 1.0

// Native returns what a latency measured in a guest would be on the machine
// itself, given its ping-pong there in microseconds.
func (r *Result) Native(ms, pong float64) float64 {
	fixed := 0.0
	if r.Way == Module {
		fixed = min(ms, fixedMS)
	}
	return fixed + (ms-fixed)*pong/r.Pong
}

// loadAlone is the processor time of a connection that nobody synchronises,
// in a guest as r's; 0 if that was not measured.
func loadAlone(results []*Result, r *Result) float64 {
	for _, none := range results {
		if none.Way == None && none.Kernel == r.Kernel && none.Clock == r.Clock {
			return none.MachineUS
		}
	}
	return 0
}

// Report writes results side by side. pong is the machine's own ping-pong.
func Report(w io.Writer, results []*Result, pong float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SYN to the peer's table, ms\tkernel\tclock\tquiet p50\tp99\tmax\tabsent\tbusy p50\tp99\tmax\tabsent\tnative-equivalent p99, quiet\tbusy")
	for _, r := range results {
		if r.Way == None {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%.1f\t%.1f\t%d\t%.1f\t%.1f\t%.1f\t%d\t%.2f\t%.2f\n", r.Way, r.Kernel, r.Clock,
			r.Quiet.P50, r.Quiet.P99, r.Quiet.Max, r.Quiet.Missing, r.Busy.P50, r.Busy.P99, r.Busy.Max, r.Busy.Missing,
			r.Native(r.Quiet.P99, pong), r.Native(r.Busy.P99, pong))
	}
	fmt.Fprintln(t, "\nthe same beside a crowd\tkernel\tclock\tothers a second\tp50\tp90\tp99\tmax\tabsent")
	for _, r := range results {
		if r.CrowdRate > 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\n", r.Way, r.Kernel, r.Clock, r.CrowdRate,
				r.Crowd.P50, r.Crowd.P90, r.Crowd.P99, r.Crowd.Max, r.Crowd.Missing)
		}
	}
	fmt.Fprintln(t, "\nlost at a power cut, by age\tkernel\tclock\t< 50 ms\t< 200 ms\t< 1 s\t< 3 s\tolder\thalf open, older than 50 ms")
	for _, r := range results {
		if r.Way == None {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s", r.Way, r.Kernel, r.Clock)
		var half Class
		for i, c := range r.Ages {
			fmt.Fprintf(t, "\t%d of %d", c.Lost, c.Open)
			if i > 0 {
				half.HalfOpen += c.HalfOpen
				half.HalfLost += c.HalfLost
			}
		}
		fmt.Fprintf(t, "\t%d of %d\n", half.HalfLost, half.HalfOpen)
	}
	fmt.Fprintln(t, "\nprocessor time a connection, µs\tkernel\tclock\tmachine\tbeyond the load itself\tof it both daemons\tguest's ping-pong")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\n", r.Way, r.Kernel, r.Clock, r.MachineUS, r.MachineUS-loadAlone(results, r), r.DaemonsUS, r.Pong)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nthe machine's ping-pong takes %.1f µs\n", pong)
	return err
}
