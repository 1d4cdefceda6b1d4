package syncd

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	"saru/internal/task"
)

// A pacer keeps work on one goroutine to a share of one core: CPU time is
// granted at the rate share, and may be saved up to burst. So within any span
// of time t the work takes at most share*t + burst, and one slice.
type pacer struct {
	share   float64
	burst   time.Duration
	cpu     func() time.Duration // CPU time of the thread so far
	granted time.Duration        // not used yet; negative: owed
	used    time.Duration        // in all
	at      time.Time
	cpuAt   time.Duration
}

func newPacer(share float64, burst time.Duration, cpu func() time.Duration) *pacer {
	return &pacer{share: share, burst: burst, cpu: cpu, granted: burst}
}

// start begins to count, from now on the calling thread.
func (p *pacer) start() { p.at, p.cpuAt = time.Now(), p.cpu() }

// account grants what time brought and charges what was used.
func (p *pacer) account() {
	now, cpu := time.Now(), p.cpu()
	used := cpu - p.cpuAt
	p.used += used
	p.granted = min(p.burst, p.granted+time.Duration(p.share*float64(now.Sub(p.at)))) - used
	p.at, p.cpuAt = now, cpu
}

// afford waits until d, or all that can be saved, is granted. It reports
// whether ctx is still alive.
func (p *pacer) afford(ctx context.Context, d time.Duration) bool {
	p.account()
	d = min(d, p.burst)
	for p.granted < d {
		if !task.Pause(ctx, time.Duration(float64(d-p.granted)/p.share)+1) {
			return false
		}
		p.account()
	}
	return ctx.Err() == nil
}

// threadCPU is the CPU time of the calling thread, in user space and in the
// kernel.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
