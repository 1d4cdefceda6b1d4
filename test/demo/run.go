package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/internal/control"
	"saru/internal/seal"
	"saru/test/lab"
	"saru/test/traffic"
)

// Bounds of single steps. They are generous: the machine is emulated.
const (
	joinLimit     = 90 * time.Second
	takeoverLimit = 30 * time.Second
	warmUp        = 120 * time.Second
	sampleEvery   = 500 * time.Millisecond
	// A status costs an emulated director milliseconds: asking more often
	// would slow down what is watched.
	watchEvery = 100 * time.Millisecond
)

// Binaries are the programs under test.
type Binaries struct {
	Saru, Syncd string   // paths
	Client      []string // arguments that lead to ClientMain, but for the plan's file
}

// A run is one demonstration under way.
type run struct {
	plan   Plan
	bin    Binaries
	dir    string
	out    io.Writer
	lab    *lab.Lab
	watch  watcher
	client *control.Client
	report Report

	mu       sync.Mutex
	accident []string // since the last sample
	daemons  map[string]*lab.Process
}

// Run makes the demonstration of plan in the lab, with everything it writes
// below dir, and tells of it on out. The report is whole even when the error
// says that the promise was not kept.
func Run(ctx context.Context, plan Plan, bin Binaries, dir string, out io.Writer) (*Report, error) {
	if err := plan.Check(); err != nil {
		return nil, err
	}
	r := &run{plan: plan, bin: bin, dir: dir, out: out, daemons: map[string]*lab.Process{}}
	r.report = Report{Plan: plan, Kernel: kernelRelease(), Start: time.Now()}
	err := r.all(ctx)
	if r.lab != nil {
		if err != nil || r.report.Err() != nil {
			r.say("leaving logs, rules and tables in %s", dir)
			err = errors.Join(err, r.lab.Collect(context.WithoutCancel(ctx)))
		}
		// The flows are judged by now. A server's namespace may outlive it for
		// minutes, while its sockets still wait for a client's last word.
		if cerr := r.lab.Close(); cerr != nil {
			r.say("the lab's end: %v", cerr)
		}
	}
	return &r.report, err
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.out, "%7.1f s  %s\n", time.Since(r.report.Start).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) all(ctx context.Context) error {
	files, err := r.build(ctx)
	if err != nil {
		return err
	}
	for _, d := range r.lab.Directors {
		if err := r.startDirector(ctx, d); err != nil {
			return err
		}
	}
	if _, err := r.watch.until(ctx, time.Now(), 200*time.Millisecond, joinLimit, "all directors at work", r.everybody); err != nil {
		return err
	}
	r.say("all %d directors at work", r.plan.Directors)
	if err := r.startClient(ctx, files); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	g.Go(func() error { r.sample(ctx); return nil })
	g.Go(func() error {
		defer cancel()
		return errors.Join(r.failovers(ctx), r.finish(ctx))
	})
	return g.Wait()
}

func (r *run) everybody(seen map[string]status) bool {
	return len(seen) == r.plan.Directors && whole(seen, r.plan.Directors)
}

// build makes the lab and starts the real servers.
func (r *run) build(ctx context.Context) ([]traffic.File, error) {
	www := filepath.Join(r.dir, "www")
	if err := os.MkdirAll(www, 0o755); err != nil {
		return nil, err
	}
	files, err := traffic.MakeFiles(www, 8, r.plan.fileSize())
	if err != nil {
		return nil, err
	}
	service := func(port uint16) lab.Service {
		return lab.Service{Proto: "tcp", Port: port, Scheduler: "wlc", Forward: lab.Gate}
	}
	r.lab, err = lab.New(ctx, lab.Topology{
		Name: "demo", Directors: r.plan.Directors, RealServers: r.plan.RealServers, Clients: 1,
		Services: []lab.Service{service(httpPort), service(linePort)},
	}, filepath.Join(r.dir, "nodes"))
	if err != nil {
		return nil, err
	}
	r.say("lab up on kernel %s: a switch, %d directors, %d real servers, a client", r.report.Kernel, r.plan.Directors, r.plan.RealServers)
	for _, s := range r.lab.RealServers {
		nginx, err := writeNginx(filepath.Join(r.dir, s.Name), www, r.plan.Rate)
		if err != nil {
			return nil, err
		}
		for name, argv := range map[string][]string{"nginx": nginx, "redis": redisArgs()} {
			if _, err := s.Start(ctx, name, argv, lab.Options{}); err != nil {
				return nil, err
			}
		}
	}
	key := filepath.Join(r.dir, "cluster.key")
	return files, os.WriteFile(key, []byte(seal.NewKey()+"\n"), 0o600)
}

func (r *run) config(d *lab.Director) director {
	c := director{
		name: d.Name, addr: d.Addr.String(), vip: r.lab.Topology.VIP.String(), keyFile: filepath.Join(r.dir, "cluster.key"),
		saruSocket: filepath.Join(r.dir, d.Name, "saru.sock"), syncdSocket: filepath.Join(r.dir, d.Name, "syncd.sock"),
	}
	for _, o := range r.lab.Directors {
		if o.Name != d.Name {
			c.peers = append(c.peers, o.Addr.String())
		}
	}
	return c
}

// startDirector starts a director's daemons, as its init would at boot.
func (r *run) startDirector(ctx context.Context, d *lab.Director) error {
	c := r.config(d)
	own := filepath.Join(r.dir, d.Name)
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	delay := time.Duration(0)
	if r.plan.Sync == SyncSyncd {
		if err := r.startDaemon(ctx, d, r.bin.Syncd, "syncd", c.syncdConf()); err != nil {
			return err
		}
		delay = 30 * time.Second
	} else {
		if err := startKernelSync(ctx, d, r.plan.Sync == SyncKernelTuned); err != nil {
			return err
		}
		delay = 5 * time.Second
	}
	if err := r.startDaemon(ctx, d, r.bin.Saru, "saru", c.saruConf(r.plan.Lease, delay)); err != nil {
		return err
	}
	r.watch.up(d.Name, c.saruSocket)
	return nil
}

func (r *run) startDaemon(ctx context.Context, d *lab.Director, binary, name, conf string) error {
	path := filepath.Join(r.dir, d.Name, name+".toml")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return err
	}
	p, err := d.Start(ctx, name, []string{binary, "run", "--config", path, "--debug", "--log_facility", "-"}, lab.Options{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.daemons[d.Name+" "+name] = p
	return err
}

// startKernelSync has the kernel's own threads send and receive connections.
func startKernelSync(ctx context.Context, d *lab.Director, tuned bool) error {
	cmds := [][]string{
		{"ipvsadm", "--start-daemon", "master", "--mcast-interface", "eth0", "--syncid", "1"},
		{"ipvsadm", "--start-daemon", "backup", "--mcast-interface", "eth0", "--syncid", "1"},
	}
	if tuned {
		cmds = append([][]string{
			{"sysctl", "-qw", "net.ipv4.vs.sync_threshold=0 0"},
			{"sysctl", "-qw", "net.ipv4.vs.sync_refresh_period=10"},
			{"sysctl", "-qw", "net.ipv4.vs.sync_retries=1"},
		}, cmds...)
	}
	for _, argv := range cmds {
		if _, err := d.Run(ctx, argv...); err != nil {
			return fmt.Errorf("%s: %s: %w", d.Name, strings.Join(argv, " "), err)
		}
	}
	return nil
}

// startClient starts the client's process, and waits until the flows of the
// plan are open.
func (r *run) startClient(ctx context.Context, files []traffic.File) error {
	socket, planFile := filepath.Join(r.dir, "client.sock"), filepath.Join(r.dir, "client.json")
	b, err := json.Marshal(clientPlan{r.plan, r.lab.Topology.VIP.String(), files, socket})
	if err != nil {
		return err
	}
	if err := os.WriteFile(planFile, b, 0o644); err != nil {
		return err
	}
	if _, err := r.lab.Clients[0].Start(ctx, "client", append(slices.Clone(r.bin.Client), planFile), lab.Options{}); err != nil {
		return err
	}
	r.client = control.NewClient(socket)
	want := r.plan.Downloads + r.plan.Quiet4 + r.plan.Quiet45
	ctx, cancel := context.WithTimeout(ctx, warmUp)
	defer cancel()
	var t traffic.Totals
	for n := 0; ; n++ {
		err := r.client.Get(ctx, "/totals", &t)
		if n%20 == 0 {
			r.say("  %d of %d flows open, %d lost, %d short requests %v", t.Open, want, t.Lost, t.Short.Done, t.Short.Reasons)
		}
		if err == nil && t.Open >= want {
			r.say("%d downloads and %d quiet connections open, short requests running", r.plan.Downloads, r.plan.Quiet4+r.plan.Quiet45)
			return nil
		}
		select {
		case <-time.After(sampleEvery):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d flows open after %v: is the virtual service up?", t.Open, want, warmUp)
		}
	}
}

// failovers cuts the power of one director after another.
func (r *run) failovers(ctx context.Context) error {
	directors := r.lab.Directors
	for i := range r.plan.Cuts {
		if err := sleep(ctx, r.plan.Steady); err != nil {
			return err
		}
		step := r.failover
		if r.plan.Planned {
			step = r.restart
		}
		if err := step(ctx, directors[i%len(directors)]); err != nil {
			err = fmt.Errorf("failover %d: %w", i+1, err)
			r.say("%v", err)
			return err
		}
	}
	return sleep(ctx, r.plan.Steady)
}

func (r *run) failover(ctx context.Context, d *lab.Director) error {
	name := d.Name
	fo := Failover{Director: name, Detected: -1, TakenOver: -1, Returned: -1}
	r.happen("power cut %s", name)
	r.watch.down(name)
	fo.Cut = time.Now()
	// The kernel takes its time to destroy a namespace; the survivors do not
	// wait for that.
	var gone errgroup.Group
	gone.Go(d.PowerCut)
	_, err := r.watch.until(ctx, fo.Cut, watchEvery, takeoverLimit, "take over the share of "+name, func(seen map[string]status) bool {
		for _, s := range seen {
			if fo.Detected < 0 && !s.counts(name) {
				fo.Detected = time.Since(fo.Cut)
			}
		}
		return whole(seen, r.plan.Directors-1)
	})
	fo.TakenOver = time.Since(fo.Cut)
	r.say("power cut %s: detected %s, share taken over %s", name, show(fo.Detected), show(fo.TakenOver))
	r.report.Failovers = append(r.report.Failovers, fo)
	if err := errors.Join(err, gone.Wait()); err != nil {
		return err
	}
	if err := sleep(ctx, r.plan.Off); err != nil {
		return err
	}
	boot := time.Now()
	if err := d.Boot(); err != nil {
		return err
	}
	if err := r.startDirector(ctx, d); err != nil {
		return err
	}
	r.happen("%s returns", name)
	took, err := r.watch.until(ctx, boot, watchEvery, joinLimit, "return of "+name, r.everybody)
	if err != nil {
		return err
	}
	r.report.Failovers[len(r.report.Failovers)-1].Returned = took
	r.say("%s returned empty and holds a share again after %s", name, show(took))
	return nil
}

func (r *run) happen(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accident = append(r.accident, fmt.Sprintf(format, args...))
}

// finish lets the flows come to their end, and takes their stories.
func (r *run) finish(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.say("letting the downloads finish")
	if err := r.client.Post(ctx, "/stop", nil, nil); err != nil {
		return err
	}
	r.report.End = time.Now()
	var t traffic.Totals
	if err := r.client.Get(ctx, "/totals", &t); err != nil {
		return err
	}
	r.report.Short = t.Short
	if err := r.client.Get(ctx, "/flows", &r.report.Flows); err != nil {
		return err
	}
	r.report.judge()
	return nil
}

// sample takes the timeline, and prints it now and then.
func (r *run) sample(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	var last Sample
	lost := 0
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var t traffic.Totals
		if r.client.Get(ctx, "/totals", &t) != nil {
			continue
		}
		if t.Lost > lost {
			lost = t.Lost
			r.tellLost(ctx)
		}
		s := Sample{
			At: time.Now(), Bytes: t.Bytes, Lines: t.Lines, Short: t.Short.Done, Failed: t.Short.Failed,
			Open: t.Open, Lost: t.Lost, Shares: map[string]int{},
		}
		for name, st := range r.watch.ask(ctx) {
			s.Shares[name] = st.Share.Buckets
		}
		r.mu.Lock()
		s.Accident, r.accident = strings.Join(r.accident, ", "), nil
		r.mu.Unlock()
		r.report.Samples = append(r.report.Samples, s)
		if n%8 == 0 {
			r.progress(last, s)
			last = s
		}
	}
}

// tellLost says which flows are lost by now, and why.
func (r *run) tellLost(ctx context.Context) {
	var flows []traffic.Flow
	if r.client.Get(ctx, "/flows", &flows) != nil {
		return
	}
	for i := range flows {
		if f := &flows[i]; f.Lost != "" {
			r.say("  lost: a %s from %s: %s", f.Kind, f.Local, f.Lost)
		}
	}
}

func (r *run) progress(last, s Sample) {
	if last.At.IsZero() {
		return
	}
	dt := s.At.Sub(last.At).Seconds()
	var shares []string
	for name, n := range s.Shares {
		shares = append(shares, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(shares)
	r.say("  %-24s | %3d flows, %d lost | %4.0f kB/s | %4.1f lines/s | %4.1f requests/s",
		strings.Join(shares, " "), s.Open, s.Lost, float64(s.Bytes-last.Bytes)/dt/1e3, float64(s.Lines-last.Lines)/dt, float64(s.Short-last.Short)/dt)
}

// kernelRelease is what "uname -r" prints.
func kernelRelease() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
