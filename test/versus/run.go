package versus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/control"
	"saru/internal/syncd"
	"saru/test/lab"
)

// A Result is what one daemon did with the flows of one run.
type Result struct {
	Daemon string
	Flows  int           // made
	Synced int           // held by the peer in the end
	Took   time.Duration // from the first flow until the peer held the last
	Owner  time.Duration // processor time of the daemon that was told
	Peer   time.Duration // of the other
	Bytes  int64         // sent from the one to the other, and back
}

func (r Result) String() string {
	per := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(max(1, r.Synced)) }
	return fmt.Sprintf("%-10s  %7d of %7d flows in %5.2f s: %7.0f flows/s; processor us a flow %5.2f owner, %5.2f peer; %5.1f bytes a flow",
		r.Daemon, r.Synced, r.Flows, r.Took.Seconds(), float64(r.Synced)/r.Took.Seconds(), per(r.Owner), per(r.Peer),
		float64(r.Bytes)/float64(max(1, r.Synced)))
}

// A daemon is a pair of nodes' daemons under test.
type daemon struct {
	name        string
	owner, peer int // process ids
	begin       func() error
	held        func() (int, error) // by the peer
}

// Run measures both daemons with so many flows at so many a second (0: as fast
// as they come). self is this program, which runs Node when its first argument
// says so.
func Run(ctx context.Context, self, dir string, flows, rate int) (results []Result, err error) {
	l, err := lab.New(ctx, lab.Topology{Name: "versus", Directors: 2, Clients: 1}, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	a, b, c := l.Directors[0].Node, l.Directors[1].Node, l.Clients[0]
	for _, start := range []func() (*daemon, error){
		func() (*daemon, error) { return syncdPair(ctx, self, a, b, flows, rate) },
		func() (*daemon, error) { return conntrackdPair(ctx, a, b, c, flows, rate) },
	} {
		d, err := start()
		if err != nil {
			return results, err
		}
		r, err := measure(ctx, d, a, b, flows)
		if err != nil {
			return results, fmt.Errorf("%s: %w", d.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

func conntrackdPair(ctx context.Context, a, b, c *lab.Node, flows, rate int) (*daemon, error) {
	if err := prepare(ctx, a, c); err != nil {
		return nil, err
	}
	owner, err := startConntrackd(ctx, a)
	if err != nil {
		return nil, err
	}
	peer, err := startConntrackd(ctx, b)
	if err != nil {
		return nil, err
	}
	return &daemon{
		name: "conntrackd", owner: owner.proc.Pid(), peer: peer.proc.Pid(),
		begin: func() error { return makeFlows(c, flows, rate) },
		held:  func() (int, error) { return peer.cached(ctx, "external") },
	}, nil
}

func syncdPair(ctx context.Context, self string, a, b *lab.Node, flows, rate int) (*daemon, error) {
	d := &daemon{name: "syncd"}
	var procs []*lab.Process
	var clients []*control.Client
	for _, n := range []*lab.Node{a, b} {
		socket := filepath.Join(n.Dir, "versus.sock")
		p, err := n.Start(ctx, "node", []string{self, "node", n.Name, socket, strconv.Itoa(flows), strconv.Itoa(rate)}, lab.Options{})
		if err != nil {
			return nil, err
		}
		procs, clients = append(procs, p), append(clients, control.NewClient(socket))
	}
	d.owner, d.peer = procs[0].Pid(), procs[1].Pid()
	d.begin = func() error { return procs[0].Signal(unix.SIGUSR1) }
	d.held = func() (int, error) {
		var st syncd.Status
		err := clients[1].Get(ctx, "/status", &st)
		return min(st.Connections.Mirror, int(st.Kernel.Injected)), err
	}
	return d, until(ctx, time.Minute, func() bool {
		var st [2]syncd.Status
		for i, c := range clients {
			if c.Get(ctx, "/status", &st[i]) != nil || !st[i].Synced || len(st[i].Peers) != 1 {
				return false
			}
		}
		return true
	})
}

// measure lets the flows come and waits until the peer holds all, or for ten
// seconds no more of them.
func measure(ctx context.Context, d *daemon, a, b *lab.Node, flows int) (Result, error) {
	if err := until(ctx, 30*time.Second, func() bool { _, err := d.held(); return err == nil }); err != nil {
		return Result{}, err
	}
	r := Result{Daemon: d.name, Flows: flows}
	owner, peer, bytes := processorTime(d.owner), processorTime(d.peer), sentBytes(ctx, a)+sentBytes(ctx, b)
	start := time.Now()
	if err := d.begin(); err != nil {
		return r, err
	}
	at := start
	for r.Synced < flows && time.Since(at) < 10*time.Second {
		n, err := d.held()
		if err != nil {
			return r, err
		}
		if n > r.Synced {
			r.Synced, at = n, time.Now()
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return r, ctx.Err()
		}
	}
	r.Took = at.Sub(start)
	r.Owner, r.Peer = processorTime(d.owner)-owner, processorTime(d.peer)-peer
	r.Bytes = sentBytes(ctx, a) + sentBytes(ctx, b) - bytes
	return r, nil
}

func until(ctx context.Context, d time.Duration, is func() bool) error {
	for deadline := time.Now().Add(d); !is(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready in %v", d)
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// processorTime is what a process has used so far (proc(5), /proc/pid/stat:
// utime and stime, in ticks of 10 ms).
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// sentBytes is what n sent through eth0, with Ethernet headers.
func sentBytes(ctx context.Context, n *lab.Node) int64 {
	out, err := n.Run(ctx, "sed", "-n", "s/^ *eth0: *//p", "/proc/net/dev")
	if err != nil {
		return 0
	}
	f := strings.Fields(out)
	if len(f) < 9 {
		return 0
	}
	v, _ := strconv.ParseInt(f[8], 10, 64)
	return v
}
