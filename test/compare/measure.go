package compare

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A Plan says how much is measured.
type Plan struct {
	Quiet    int           // connections on a quiet director, one after another
	Busy     int           // and beside others that arrive
	Rate     int           // of those, a second
	Crowd    int           // and of those beside whom as many are measured again; 0: not
	Cuts     int           // of the active director's link
	Growing  time.Duration // how long connections arrive before each cut
	Costs    int           // connections for the processor time
	Patience time.Duration // how long to look for a connection at the peer
}

// DefaultPlan fits a guest within three minutes.
func DefaultPlan() Plan {
	return Plan{Quiet: 40, Busy: 40, Rate: 30, Cuts: 4, Growing: 3800 * time.Millisecond, Costs: 120, Patience: 4 * time.Second}
}

// VirtualPlan does so in a guest whose clock counts instructions: there time
// that is waited costs nothing, and more connections make it busy. The crowd is
// half of what its processor can open and close when nobody synchronises.
func VirtualPlan() Plan {
	return Plan{Quiet: 100, Busy: 100, Rate: 50, Crowd: 1500, Cuts: 3, Growing: 3800 * time.Millisecond, Costs: 200, Patience: 4 * time.Second}
}

// A Latency is from the client's SYN to the peer's kernel, in milliseconds.
type Latency struct {
	N       int     `json:"n"`
	Missing int     `json:"missing"` // not there within the plan's patience
	P50     float64 `json:"p50_ms"`
	P90     float64 `json:"p90_ms"`
	P99     float64 `json:"p99_ms"`
	Max     float64 `json:"max_ms"`
}

// Ages are the upper bounds of the classes by age at the cut; the last class
// has none.
var Ages = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second, 3 * time.Second}

// A Class is the connections of one age at the cut.
type Class struct {
	Open     int `json:"open"` // that had exchanged bytes or were about to
	Lost     int `json:"lost"`
	HalfOpen int `json:"half_open"` // whose server did not answer
	HalfLost int `json:"half_lost"`
}

// What the guest's clock runs by.
const (
	Real    = "real"    // the machine's
	Virtual = "virtual" // a nanosecond for each instruction of either processor
)

// A Result is what was measured of one way.
type Result struct {
	Way       string  `json:"way"`
	Kernel    string  `json:"kernel"`
	Clock     string  `json:"clock"`   // Real or Virtual
	Rate      int     `json:"rate"`    // connections a second on busy directors
	Pong      float64 `json:"pong_us"` // round trip between two namespaces, median
	Quiet     Latency `json:"quiet"`
	Busy      Latency `json:"busy"`
	Crowd     Latency `json:"crowd"`      // beside CrowdRate others
	CrowdRate float64 `json:"crowd_rate"` // a second, as they were opened; 0: not measured
	Ages      []Class `json:"ages"`       // one more than Ages
	// Processor time in microseconds for each connection, opening, a byte to
	// and fro, and reset: of the whole machine, and of both daemons.
	MachineUS float64 `json:"machine_us"`
	DaemonsUS float64 `json:"daemons_us"`
}

// goalMS is within how many milliseconds 99 of 100 connections that syncd tells
// of are to be in the peer's kernel.
const goalMS = 50

// Goals says what of syncd's goals was missed, by a clock that shows nothing
// but instructions.
func (r *Result) Goals() error {
	if r.Clock != Virtual || r.Way != Tap && r.Way != Module {
		return nil
	}
	var errs []error
	for _, l := range []struct {
		when string
		Latency
	}{{"quiet", r.Quiet}, {"busy", r.Busy}, {"beside a crowd", r.Crowd}} {
		if l.N > 0 && (l.P99 > goalMS || l.Missing > 0) {
			errs = append(errs, fmt.Errorf("%s on Linux %s, %s: 99th percentile %.1f ms, %d absent; the goal is %d ms and none",
				r.Way, r.Kernel, l.when, l.P99, l.Missing, goalMS))
		}
	}
	return errors.Join(errs...)
}

// Run measures one way on this kernel, which must have IPVS. syncd and module
// are files. say is told what it is about to do, and done the result before all
// is taken down.
func Run(ctx context.Context, way, clock string, syncd, module, dir string, say func(string), done func(*Result) error) (err error) {
	say("building the lab")
	s, err := newSite(ctx, way, syncd, module, dir)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	plan := DefaultPlan()
	if clock == Virtual {
		plan = VirtualPlan()
	}
	switch {
	case way == KernelDefault, way == KernelTuned && clock == Virtual:
		// Each takes seconds there.
		plan.Quiet, plan.Busy = min(plan.Quiet, 15), min(plan.Busy, 15)
	}
	r := &Result{Way: way, Clock: clock, Rate: plan.Rate, Ages: make([]Class, len(Ages)+1)}
	if r.Pong, err = Calibrate(ctx); err != nil {
		return err
	}
	if way != None {
		say("quiet directors")
		if r.Quiet, err = s.latency(ctx, plan.Quiet, plan.Patience); err != nil {
			return err
		}
		say("busy directors")
		if r.Busy, _, err = s.busy(ctx, plan, plan.Rate); err != nil {
			return err
		}
		if plan.Crowd > 0 {
			say("crowded directors")
			if r.Crowd, r.CrowdRate, err = s.busy(ctx, plan, plan.Crowd); err != nil {
				return err
			}
		}
	}
	say("processor time")
	if r.MachineUS, r.DaemonsUS, err = s.costs(ctx, plan); err != nil {
		return err
	}
	if way == None {
		return done(r)
	}
	for range plan.Cuts {
		say("power cut")
		if err := s.cut(ctx, plan, r.Ages); err != nil {
			return err
		}
	}
	return done(r)
}

// look is how long to wait between two looks at the peer's kernel: they take
// processor time from what is looked at.
const look = 500 * time.Microsecond

// latency measures n connections, one after another.
func (s *site) latency(ctx context.Context, n int, patience time.Duration) (Latency, error) {
	var took []time.Duration
	missing := 0
	err := s.client.Do(func() error {
		for range n {
			// At no fixed phase of anybody's timers.
			pause := unix.NsecToTimespec(int64(20*time.Millisecond) + rand.Int64N(int64(100*time.Millisecond)))
			_ = unix.Nanosleep(&pause, nil)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c, err := open(s.key(openPort))
			if err != nil {
				return err
			}
			d, err := s.await(c, patience)
			c.close()
			switch {
			case err != nil:
				return err
			case d < 0:
				missing++
			default:
				took = append(took, d)
			}
		}
		return nil
	})
	l := summary(took)
	l.Missing = missing
	return l, err
}

// await returns after which time the peer has c, -1 if it has not.
func (s *site) await(c *connection, patience time.Duration) (time.Duration, error) {
	for {
		there, err := s.has(c.key)
		d := time.Since(c.at)
		switch {
		case err != nil:
			return 0, err
		case there:
			return d, nil
		case d > patience:
			return -1, nil
		}
		pause := unix.NsecToTimespec(int64(look))
		_ = unix.Nanosleep(&pause, nil)
	}
}

func summary(took []time.Duration) Latency {
	l := Latency{N: len(took)}
	if len(took) == 0 {
		return l
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		i := min(int(q*float64(len(took))), len(took)-1)
		return float64(took[i].Microseconds()) / 1000
	}
	l.P50, l.P90, l.P99, l.Max = at(0.5), at(0.9), at(0.99), at(1)
	return l
}

// busy is latency while others arrive, rate a second. It returns at which rate
// they did.
func (s *site) busy(ctx context.Context, plan Plan, rate int) (l Latency, came float64, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	start, n := time.Now(), 0
	later := closeLater(200 * time.Millisecond)
	g.Go(func() error {
		return s.arrive(ctx, rate, 0, 0, func(c *connection) { n++; later(c) })
	})
	g.Go(func() (err error) {
		defer stop()
		l, err = s.latency(ctx, plan.Busy, plan.Patience)
		return err
	})
	err = g.Wait()
	return l, float64(n) / time.Since(start).Seconds(), err
}

func closeLater(d time.Duration) func(*connection) {
	return func(c *connection) { time.AfterFunc(d, c.close) }
}

// costs measures the processor time of plan.Costs connections, beyond what is
// used without any.
func (s *site) costs(ctx context.Context, plan Plan) (machine, daemons float64, err error) {
	const rest = 500 * time.Millisecond // until the last are closed and told
	work := func() error {
		err := s.arrive(ctx, plan.Rate, plan.Costs, 0, closeLater(200*time.Millisecond))
		time.Sleep(rest)
		return err
	}
	idle := func() error {
		time.Sleep(time.Second*time.Duration(plan.Costs)/time.Duration(plan.Rate) + rest)
		return nil
	}
	m1, d1, err := s.using(work)
	if err != nil {
		return 0, 0, err
	}
	m0, d0, err := s.using(idle)
	n := float64(plan.Costs)
	return float64((m1 - m0).Microseconds()) / n, float64((d1 - d0).Microseconds()) / n, err
}

// using returns the processor time used while do runs.
func (s *site) using(do func() error) (machine, daemons time.Duration, err error) {
	m0, d0, err := s.used()
	if err != nil {
		return 0, 0, err
	}
	if err := do(); err != nil {
		return 0, 0, err
	}
	m1, d1, err := s.used()
	return m1 - m0, d1 - d0, err
}

// tick is the unit of processor time in /proc (USER_HZ).
const tick = 10 * time.Millisecond

// used returns the processor time so far, of the machine and of the daemons.
// The machine's is the time that it did not idle: the kernel measures that,
// while it samples what is busy at its ticks.
func (s *site) used() (machine, daemons time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	machine = time.Since(s.began) * time.Duration(runtime.NumCPU())
	line, _, _ := strings.Cut(string(text), "\n")
	// cpu user nice system idle iowait …
	for i, f := range strings.Fields(line) {
		if i != 4 && i != 5 {
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		machine -= time.Duration(n) * tick
	}
	for _, p := range s.syncds {
		d, err := threads(p.Pid())
		if err != nil {
			return 0, 0, err
		}
		daemons += d
	}
	return machine, daemons, nil
}

// threads returns what all threads of a process have run.
func threads(pid int) (time.Duration, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(dir + "/" + t.Name() + "/schedstat")
		if err != nil {
			continue // it ended
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", dir, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// settle is how long the peer gets to deal with what it had received when the
// link was cut.
const settle = 1500 * time.Millisecond

// cut lets connections arrive, cuts the active director's link in the midst
// and counts which ones the peer's kernel lacks.
func (s *site) cut(ctx context.Context, plan Plan, ages []Class) error {
	var mu sync.Mutex
	var conns []*connection
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		return s.arrive(ctx, plan.Rate, 0, 4, func(c *connection) {
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, c)
		})
	})
	time.Sleep(plan.Growing + time.Duration(rand.Int64N(int64(500*time.Millisecond))))
	at := time.Now()
	err := s.active.CutLink()
	stop()
	if werr := g.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	time.Sleep(settle)
	for _, c := range conns {
		age := at.Sub(c.at)
		if age < 0 {
			continue // never sent, or its SYN met the cut
		}
		there, err := s.has(c.key)
		if err != nil {
			return err
		}
		class, _ := slices.BinarySearch(Ages, age)
		count(&ages[class], c.key.Virtual.Port() == silentPort, there)
	}
	for _, c := range conns {
		c.close()
	}
	if err := s.active.RestoreLink(); err != nil {
		return err
	}
	time.Sleep(settle) // until the directors hear each other again
	return nil
}

func count(c *Class, halfOpen, there bool) {
	n, lost := &c.Open, &c.Lost
	if halfOpen {
		n, lost = &c.HalfOpen, &c.HalfLost
	}
	*n++
	if !there {
		*lost++
	}
}
