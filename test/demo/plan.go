package demo

import (
	"fmt"
	"time"
)

// The ways to keep the directors' connection tables together.
const (
	SyncSyncd       = "syncd"        // ours
	SyncKernel      = "kernel"       // the kernel's sync threads with their defaults
	SyncKernelTuned = "kernel-tuned" // the same, set up as well as they can be
)

// emulatedLease is many times the default: an emulated processor is so much
// slower than a real one that directors on a loaded machine miss heartbeats,
// close, and are slower still for opening again: with 2 s three directors on two
// emulated processors closed and opened without end when one of them came back.
const emulatedLease = 4 * time.Second

// A Plan is what a run does.
type Plan struct {
	Directors   int
	RealServers int
	Downloads   int           // open at any time
	Quiet4      int           // connections that exchange a line every 4 s
	Quiet45     int           // and every 45 s
	Short       time.Duration // one short request each
	Rate        int           // of each download, bytes/s
	Cuts        int           // power cuts, the directors in turn
	Planned     bool          // no cuts: each director is drained, its daemons are ended by SIGTERM and started again
	Steady      time.Duration // from all directors serving to the cut
	Off         time.Duration // from the cut to the return
	Lease       time.Duration
	Sync        string
}

// Full is what "make demo" does.
func Full() Plan {
	return Plan{
		Directors: 3, RealServers: 2,
		Downloads: 200, Quiet4: 100, Quiet45: 100, Short: 200 * time.Millisecond, Rate: 4 << 10,
		Cuts: 6, Steady: 12 * time.Second, Off: 8 * time.Second,
		Lease: emulatedLease, Sync: SyncSyncd,
	}
}

// Brief is what the end-to-end test does: each director loses power once.
func Brief() Plan {
	p := Full()
	p.Downloads, p.Quiet4, p.Quiet45, p.Cuts = 50, 25, 25, 3
	p.Steady, p.Off = 6*time.Second, 4*time.Second
	return p
}

// plannedLease is longer still: no lease runs out in a planned restart, so
// that it takes no more time, and a machine that is too busy shows nothing.
const plannedLease = 6 * time.Second

// Rolling is a planned restart of every director, one after another.
func Rolling() Plan {
	p := Brief()
	p.Planned, p.Off, p.Lease = true, 2*time.Second, plannedLease
	return p
}

// Check returns what is wrong with the plan.
func (p Plan) Check() error {
	switch {
	case p.Directors < 2 || p.Directors > 8:
		return fmt.Errorf("%d directors: want 2 to 8", p.Directors)
	case p.RealServers < 1 || p.RealServers > 8:
		return fmt.Errorf("%d real servers: want 1 to 8", p.RealServers)
	case p.Sync != SyncSyncd && p.Sync != SyncKernel && p.Sync != SyncKernelTuned:
		return fmt.Errorf("sync %q: want %s, %s or %s", p.Sync, SyncSyncd, SyncKernel, SyncKernelTuned)
	case p.Rate < 1024:
		return fmt.Errorf("rate %d bytes/s: want at least 1024", p.Rate)
	}
	return nil
}

// cycle is about how long one failover takes, the directors' return included.
func (p Plan) cycle() time.Duration { return p.Steady + p.Off + 10*time.Second }

// fileSize makes a download last longer than the whole run, so that one that
// is open at the first cut meets the last one too.
func (p Plan) fileSize() int64 {
	return int64((time.Duration(p.Cuts)*p.cycle() + 20*time.Second).Seconds()) * int64(p.Rate)
}
