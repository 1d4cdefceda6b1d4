package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Lab is a network that runs.
type Lab struct {
	Topology    Topology // with the defaults filled in
	Dir         string   // of all logs and collected states
	Directors   []*Director
	RealServers []*Node
	Clients     []*Node

	ctx    context.Context // of the set-up commands, at boots too
	fabric *namespace      // the switch's

	mu   sync.Mutex
	half map[string]bool // nodes on the far half of a split switch
}

// Director is a node that balances.
type Director struct{ *Node }

// HasIPVS reports whether the running kernel has IPVS, after asking for the
// module.
func HasIPVS() bool {
	const proc = "/proc/net/ip_vs"
	if _, err := os.Stat(proc); err == nil {
		return true
	}
	// A kernel without modules says so by the file's absence.
	_ = exec.Command("modprobe", "ip_vs").Run()
	_, err := os.Stat(proc)
	return err == nil
}

// ErrNoIPVS says that a topology with services needs another kernel.
var ErrNoIPVS = errors.New("the kernel has no IPVS, run it in a guest (package guest)")

// New builds the network that t declares and boots every node. Logs go to dir,
// one folder per node. The caller must Close it. It needs root.
func New(ctx context.Context, t Topology, dir string) (*Lab, error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	if len(t.Services) > 0 && !HasIPVS() {
		return nil, fmt.Errorf("topology %s: %w", t.Name, ErrNoIPVS)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	l := &Lab{Topology: t, Dir: dir, ctx: ctx, half: map[string]bool{}}
	l.declare()
	if l.fabric, err = newSwitch(); err != nil {
		return nil, fmt.Errorf("topology %s: switch: %w", t.Name, err)
	}
	for _, n := range l.Nodes() {
		if err := os.MkdirAll(n.Dir, 0o755); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		if err := n.Boot(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// declare makes the nodes, without power.
func (l *Lab) declare() {
	for i := range l.Topology.Directors {
		d := &Director{l.node("d", i, firstDirector)}
		d.configure = d.setUp
		l.Directors = append(l.Directors, d)
	}
	for i := range l.Topology.RealServers {
		r := l.node("r", i, firstRealServer)
		r.configure = func() error { return l.setUpRealServer(r) }
		l.RealServers = append(l.RealServers, r)
	}
	for i := range l.Topology.Clients {
		l.Clients = append(l.Clients, l.node("c", i, firstClient))
	}
}

func (l *Lab) node(prefix string, i, first int) *Node {
	name := fmt.Sprintf("%s%d", prefix, i+1)
	addr := host(l.Topology.Subnet, first+i)
	return &Node{lab: l, Name: name, Addr: addr, Addr6: host6(first + i), MAC: hardwareAddr(addr), Dir: filepath.Join(l.Dir, name)}
}

// Nodes lists all nodes: directors, real servers, clients.
func (l *Lab) Nodes() []*Node {
	var all []*Node
	for _, d := range l.Directors {
		all = append(all, d.Node)
	}
	return append(append(all, l.RealServers...), l.Clients...)
}

func (l *Lab) realAddrs() (four, six []netip.Addr) {
	for _, r := range l.RealServers {
		four, six = append(four, r.Addr), append(six, r.Addr6)
	}
	return four, six
}

// hideVIP configures the VIP on lo so that the node does not answer ARP for it.
func (n *Node) hideVIP() error {
	if err := n.Sysctl("net.ipv4.conf.all.arp_ignore", "1"); err != nil {
		return err
	}
	if err := n.Sysctl("net.ipv4.conf.all.arp_announce", "2"); err != nil {
		return err
	}
	return n.Do(func() error {
		err := addAddress("lo", netip.PrefixFrom(n.lab.Topology.VIP, 32))
		if n.lab.Topology.IPv6 {
			err = errors.Join(err, addAddress("lo", netip.PrefixFrom(VIP6, 128)))
		}
		return err
	})
}

// setUp is what a director's operator configured to happen at boot.
func (d *Director) setUp() error {
	t := d.lab.Topology
	if err := d.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if t.VIPOnDirectors {
		if err := d.hideVIP(); err != nil {
			return err
		}
	}
	if t.uses(Masq) {
		// On one LAN the director would tell real servers of a shorter way.
		for _, name := range []string{"all", Interface} {
			if err := d.Sysctl("net.ipv4.conf."+name+".send_redirects", "0"); err != nil {
				return err
			}
		}
	}
	if err := d.markPackets(); err != nil {
		return err
	}
	return d.RestoreServices()
}

// markPackets gives the packets of services with a firewall mark theirs.
func (d *Director) markPackets() error {
	var rules strings.Builder
	for _, s := range d.lab.Topology.Services {
		if s.Mark != 0 {
			fmt.Fprintf(&rules, "add rule ip marks pre ip daddr %v %s dport %d meta mark set %d\n", d.lab.Topology.VIP, s.Proto, s.Port, s.Mark)
		}
	}
	if rules.Len() == 0 {
		return nil
	}
	script := "add table ip marks\nadd chain ip marks pre { type filter hook prerouting priority mangle; }\n" + rules.String()
	_, err := d.RunWith(d.lab.ctx, Options{Stdin: []byte(script)}, "nft", "-f", "-")
	return err
}

// RestoreServices adds the topology's services to IPVS.
func (d *Director) RestoreServices() error {
	if len(d.lab.Topology.Services) == 0 {
		return nil
	}
	var rules strings.Builder
	four, six := d.lab.realAddrs()
	marks := map[int]bool{}
	for _, s := range d.lab.Topology.Services {
		if s.Mark != 0 && marks[s.Mark] {
			continue
		}
		marks[s.Mark] = true
		rules.WriteString(s.rules(d.lab.Topology.VIP, four))
		if d.lab.Topology.IPv6 && s.Forward == Gate {
			rules.WriteString(s.rules(VIP6, six))
		}
	}
	_, err := d.RunWith(d.lab.ctx, Options{Stdin: []byte(rules.String())}, "ipvsadm", "-R")
	return err
}

// setUpRealServer prepares a real server for the forwarding methods in use.
func (l *Lab) setUpRealServer(r *Node) error {
	t := l.Topology
	tunnels := slices.DeleteFunc([]Forward{IPIP, GUE, GRE}, func(f Forward) bool { return !t.uses(f) })
	if t.uses(Gate) || len(tunnels) > 0 || len(t.Services) == 0 {
		if err := r.hideVIP(); err != nil {
			return err
		}
	}
	for _, f := range tunnels {
		if err := r.tunnel(f); err != nil {
			return err
		}
	}
	if t.uses(Masq) {
		return l.routeThroughGateway(r)
	}
	return nil
}

// Collect writes what is needed to understand a failure to each living
// director's folder, below "state". Errors of the commands are in the files.
func (l *Lab) Collect(ctx context.Context) error {
	var errs []error
	for _, d := range l.Directors {
		if d.Running() {
			errs = append(errs, d.collect(ctx))
		}
	}
	text, err := l.describeSwitch()
	errs = append(errs, err, os.WriteFile(filepath.Join(l.Dir, "switch.txt"), []byte(text), 0o644))
	return errors.Join(errs...)
}

var collected = map[string][]string{
	"nft-ruleset.txt":   {"nft", "-a", "list", "ruleset"},
	"ipvs-services.txt": {"ipvsadm", "-Ln", "--stats"},
	"ipvs-conns.txt":    {"ipvsadm", "-Lnc"},
	"ipvs-sync.txt":     {"cat", "/proc/net/ip_vs_conn_sync"},
	"ipvs-daemons.txt":  {"ipvsadm", "-L", "--daemon"},
	"ip-addr.txt":       {"ip", "-d", "-s", "addr"},
	"ip-neigh.txt":      {"ip", "neigh"},
	"ip-route.txt":      {"ip", "route", "show", "table", "all"},
	"net-packet.txt":    {"cat", "/proc/net/packet"},
	"sockets.txt":       {"ss", "-anp"},
}

func (d *Director) collect(ctx context.Context) error {
	dir := filepath.Join(d.Dir, "state")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for file, argv := range collected {
		out, err := d.Run(ctx, argv...)
		if err != nil {
			// nft 1.0.6 crashes on some rulesets; a kernel may lack IPVS.
			out += fmt.Sprintf("\n[%v]\n", err)
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644))
	}
	text, err := d.sysctls()
	errs = append(errs, err, os.WriteFile(filepath.Join(dir, "sysctl-net.txt"), []byte(text), 0o644))
	return errors.Join(errs...)
}

// sysctls lists the node's parameters below net.ipv4 that matter to IPVS.
func (n *Node) sysctls() (string, error) {
	var text strings.Builder
	err := n.Do(func() error {
		for _, pattern := range []string{"ip_forward", "vs/*", "conf/*/*"} {
			files, err := filepath.Glob("/proc/sys/net/ipv4/" + pattern)
			if err != nil {
				return err
			}
			for _, f := range files {
				// Some may only be written.
				if value, err := os.ReadFile(f); err == nil {
					fmt.Fprintf(&text, "%s = %s\n", strings.TrimPrefix(f, "/proc/sys/"), bytes.TrimSpace(value))
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("%s: parameters: %w", n.Name, err)
	}
	return text.String(), nil
}

// Close ends every process and removes every namespace, and says so if one
// could not be removed.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range l.Nodes() {
		if n.Running() {
			errs = append(errs, n.PowerCut())
		}
	}
	if l.fabric != nil {
		errs = append(errs, l.fabric.kill())
		l.fabric.release()
	}
	return errors.Join(errs...)
}

// Root returns an error that tells why the lab cannot work for this process.
func Root() error {
	if unix.Geteuid() != 0 {
		return errors.New("the lab makes network namespaces and needs root")
	}
	return nil
}
