package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"time"
)

// Busy has a system's directors serve for a while, with every processor loaded
// by as many busy loops again as there are processors, and reports how often a
// living director was taken for dead: it should be never.
func Busy(ctx context.Context, w io.Writer, dir, binary string, s System, d time.Duration) (fences uint64, err error) {
	p, err := open(ctx, s, "busy", dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range 2 * runtime.NumCPU() {
		loop := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := loop.Start(); err != nil {
			return 0, err
		}
		defer loop.Wait()
		defer cancel()
	}
	before, _, err := p.fences(ctx, binary)
	if err != nil {
		return 0, err
	}
	mark := time.Now()
	if err := sleep(ctx, d); err != nil {
		return 0, err
	}
	sum := p.ledger.Between(mark, time.Now().Add(-50*time.Millisecond))
	after, worst, err := p.fences(ctx, binary)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(w, "%s, %v with %d busy loops on %d processors: %d false fencings, %d of %d datagrams lost, longest gap %v, %d twice, worst tick %.1f ms late\n",
		s.Name, d, 2*runtime.NumCPU(), runtime.NumCPU(), after-before, sum.Lost, sum.Sent, sum.Gap.Round(time.Millisecond), len(p.ledger.Twice()), worst)
	return after - before, nil
}

// fences returns how often the directors have closed for want of a lease or a
// peer's answer, and by how many milliseconds a tick was late at most.
func (p *pair) fences(ctx context.Context, binary string) (n uint64, worst float64, err error) {
	for _, d := range p.lab.Directors {
		st, err := saruStatus(ctx, binary, d)
		if err != nil {
			return 0, 0, err
		}
		n += st.Protocol.Fences + st.Protocol.Mutes + st.Protocol.LostGrants
		worst = max(worst, st.Engine.WorstTickMS)
	}
	return n, worst, nil
}
