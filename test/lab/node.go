package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is the LAN interface's name in every node.
const Interface = "eth0"

// Node is a machine of the lab: a client, a director or a real server.
type Node struct {
	Name  string
	Addr  netip.Addr
	Addr6 netip.Addr // if the topology has IPv6
	MAC   net.HardwareAddr
	Dir   string // for this node's files; outlives power cuts

	lab       *Lab
	configure func() error // what its operator set up to happen at boot

	mu        sync.Mutex
	ns        *namespace // nil without power
	processes []*Process
}

func (n *Node) String() string { return n.Name }

// namespace returns the node's namespace, or an error when its power is off.
func (n *Node) namespace() (*namespace, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ns == nil {
		return nil, fmt.Errorf("%s: %w", n.Name, errNamespaceGone)
	}
	return n.ns, nil
}

// Running reports whether the node has power.
func (n *Node) Running() bool {
	_, err := n.namespace()
	return err == nil
}

// Do runs f on a thread of its own inside the node; a socket that f opens is
// the node's, and stays so afterwards. Goroutines that f starts are outside.
func (n *Node) Do(f func() error) error {
	ns, err := n.namespace()
	if err != nil {
		return err
	}
	return ns.do(f)
}

// Options refine how a process is started.
type Options struct {
	Env   []string // K=V, beside this process's environment
	Dir   string   // working directory; default the node's
	Stdin []byte
}

// Process is a daemon of a node.
type Process struct {
	Name string
	Log  string // file of its output

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read after done
}

// Start runs argv in the node until it ends, is ended, or ctx ends. Its output
// is appended to Dir/name.log.
func (n *Node) Start(ctx context.Context, name string, argv []string, o Options) (*Process, error) {
	ns, err := n.namespace()
	if err != nil {
		return nil, err
	}
	p := &Process{Name: name, Log: filepath.Join(n.Dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: log: %w", n.Name, name, err)
	}
	defer log.Close()
	p.cmd = n.command(ctx, argv, o)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := ns.onThread(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", n.Name, name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	n.mu.Lock()
	n.processes = append(n.processes, p)
	n.mu.Unlock()
	return p, nil
}

// Run runs argv in the node to its end and returns what it printed. Its error
// holds the output too.
func (n *Node) Run(ctx context.Context, argv ...string) (string, error) {
	return n.RunWith(ctx, Options{}, argv...)
}

// RunWith is Run with options.
func (n *Node) RunWith(ctx context.Context, o Options, argv ...string) (string, error) {
	ns, err := n.namespace()
	if err != nil {
		return "", err
	}
	cmd := n.command(ctx, argv, o)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.onThread(cmd.Start); err != nil {
		return "", fmt.Errorf("%s: %s: %w", n.Name, strings.Join(argv, " "), err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w: %s",
			n.Name, strings.Join(argv, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

func (n *Node) command(ctx context.Context, argv []string, o Options) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Dir = o.Dir
	if cmd.Dir == "" {
		cmd.Dir = n.Dir
	}
	if o.Stdin != nil {
		cmd.Stdin = bytes.NewReader(o.Stdin)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A grandchild that holds the output must not hold Wait.
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns exec.Cmd's error for it.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// ExitCode is the exit status after the end, -1 before it or after a signal.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Signal sends to the process and the children in its group.
func (p *Process) Signal(s unix.Signal) error {
	err := unix.Kill(-p.Pid(), s)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s: %v: %w", p.Name, s, err)
	}
	return nil
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop hangs the process (SIGSTOP) until Cont.
func (p *Process) Stop() error { return p.Signal(unix.SIGSTOP) }

// Cont lets a hung process go on.
func (p *Process) Cont() error { return p.Signal(unix.SIGCONT) }

// Term asks the process to end and waits for it, for at most the time given;
// then it kills it and returns an error.
func (p *Process) Term(wait time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(wait):
		return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", p.Name, wait), p.Kill())
	}
}

// Boot gives the node power: a new namespace, empty but for what its operator
// configured. Daemons are the caller's to start.
func (n *Node) Boot() error {
	if n.Running() {
		return fmt.Errorf("%s: boot: it has power already", n.Name)
	}
	ns, err := newNamespace()
	if err != nil {
		return fmt.Errorf("%s: boot: %w", n.Name, err)
	}
	n.mu.Lock()
	n.ns = ns
	n.mu.Unlock()
	if err := n.lab.plug(n, ns); err != nil {
		return fmt.Errorf("%s: boot: %w", n.Name, err)
	}
	if err := ns.do(n.addresses); err != nil {
		return fmt.Errorf("%s: boot: %w", n.Name, err)
	}
	if n.configure != nil {
		if err := n.configure(); err != nil {
			return fmt.Errorf("%s: boot: %w", n.Name, err)
		}
	}
	return nil
}

// addresses brings lo and eth0 up.
func (n *Node) addresses() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	if err := addAddress(Interface, netip.PrefixFrom(n.Addr, n.lab.Topology.Subnet.Bits())); err != nil {
		return err
	}
	if n.lab.Topology.IPv6 {
		if err := addAddress(Interface, netip.PrefixFrom(n.Addr6, 64)); err != nil {
			return err
		}
	}
	eth, err := netlink.LinkByName(Interface)
	if err != nil {
		return fmt.Errorf("%s: %w", Interface, err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("%s up: %w", Interface, err)
	}
	return nil
}

// addAddress configures an address on an interface of the thread's namespace.
func addAddress(ifname string, p netip.Prefix) error {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("%s: %w", ifname, err)
	}
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %v on %s: %w", p, ifname, err)
	}
	return nil
}

// Sysctl writes a kernel parameter of the node, named as in sysctl(8).
func (n *Node) Sysctl(name, value string) error {
	file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	err := n.Do(func() error { return os.WriteFile(file, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("%s: sysctl %s=%s: %w", n.Name, name, value, err)
	}
	return nil
}

// PowerCut takes the node's power away: its link goes down, its processes are
// killed, its namespace is destroyed. It returns when the kernel has removed
// the namespace and all in it; Boot brings the node back empty.
func (n *Node) PowerCut() error {
	ns, err := n.namespace()
	if err != nil {
		return err
	}
	// The kernel would try for a minute or two to close the TCP connections of
	// the dead, and keep the namespace for that long.
	orphanErr := n.Sysctl("net.ipv4.tcp_orphan_retries", "1")
	linkErr := n.lab.setPort(n, false)
	n.mu.Lock()
	n.ns = nil
	processes := n.processes
	n.processes = nil
	n.mu.Unlock()
	killErr := ns.kill()
	ns.release()
	for _, p := range processes {
		<-p.done
	}
	goneErr := n.lab.waitUnplugged(n, ns)
	if err := errors.Join(orphanErr, linkErr, killErr, goneErr); err != nil {
		return fmt.Errorf("%s: power cut: %w", n.Name, err)
	}
	return nil
}

// CutLink pulls the node's cable: its interface has no carrier.
func (n *Node) CutLink() error { return n.lab.setPort(n, false) }

// RestoreLink plugs the cable in again.
func (n *Node) RestoreLink() error { return n.lab.setPort(n, true) }

// Netem makes the node's link lose frames (percent) and delay them, in each
// direction. Zero for both ends that.
func (n *Node) Netem(loss float32, delay time.Duration) error {
	if err := n.Do(func() error { return netem(Interface, loss, delay) }); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	if err := n.lab.fabric.do(func() error { return netem(n.Name, loss, delay) }); err != nil {
		return fmt.Errorf("%s: switch port: %w", n.Name, err)
	}
	return nil
}

func netem(ifname string, loss float32, delay time.Duration) error {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("%s: %w", ifname, err)
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    netlink.MakeHandle(1, 0),
		Parent:    netlink.HANDLE_ROOT,
	}
	q := netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{
		Latency: uint32(delay.Microseconds()),
		Loss:    loss,
		Limit:   100_000,
	})
	if loss == 0 && delay == 0 {
		if err := netlink.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("netem on %s: %w", ifname, err)
		}
		return nil
	}
	if err := netlink.QdiscReplace(q); err != nil {
		return fmt.Errorf("netem on %s (the kernel needs sch_netem): %w", ifname, err)
	}
	return nil
}
