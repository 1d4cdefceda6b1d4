package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"saru/test/lab"
)

// start builds a lab that the test's end checks and removes.
func start(t *testing.T, topology lab.Topology) *lab.Lab {
	t.Helper()
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(t.Context(), topology, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if err := l.Collect(context.Background()); err != nil {
				t.Log(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

const (
	soon = 20 * time.Second // more than any answer takes
	aFew = time.Second      // some ten requests, none to be answered
)

// reaches fails the test unless an answer comes.
func reaches(t *testing.T, from, to *lab.Node) {
	t.Helper()
	if err := from.Ping(to.Addr, soon); err != nil {
		t.Error(err)
	}
}

// silent fails the test if an answer comes.
func silent(t *testing.T, from, to *lab.Node, why string) {
	t.Helper()
	if err := from.Ping(to.Addr, aFew); !errors.Is(err, lab.ErrNoAnswer) {
		t.Errorf("%s: ping from %v to %v: %v, want no answer", why, from, to, err)
	}
}

func TestNodesReachEachOther(t *testing.T) {
	l := start(t, lab.Topology{Directors: 2, RealServers: 1, Clients: 1})
	for _, to := range l.Nodes() {
		reaches(t, l.Clients[0], to)
	}
	table, err := l.SwitchFDB()
	if err != nil {
		t.Fatal(err)
	}
	learned := map[string]string{}
	for _, e := range table {
		learned[e.Port] = e.MAC.String()
	}
	for _, n := range l.Nodes() {
		if learned[n.Name] != n.MAC.String() {
			t.Errorf("switch learned %q at port %s, want %v", learned[n.Name], n.Name, n.MAC)
		}
	}
}

func TestNodesHaveTheirOwnRunAndNetwork(t *testing.T) {
	l := start(t, lab.Topology{Directors: 2})
	d1, d2 := l.Directors[0], l.Directors[1]
	if _, err := d1.Run(t.Context(), "touch", "/run/mine"); err != nil {
		t.Fatal(err)
	}
	if out, err := d2.Run(t.Context(), "ls", "/run"); err != nil || strings.Contains(out, "mine") {
		t.Errorf("d2 sees d1's /run: %q, %v", out, err)
	}
	if err := d1.Do(func() error { _, err := os.Stat("/run/mine"); return err }); err != nil {
		t.Errorf("Do does not see what Run sees: %v", err)
	}
	out, err := d1.Run(t.Context(), "ls", "/sys/class/net")
	if err != nil || !strings.Contains(out, lab.Interface) || strings.Contains(out, "br0") {
		t.Errorf("/sys/class/net holds %q, %v; want the node's", out, err)
	}
}

func TestPowerCutLeavesNothing(t *testing.T) {
	l := start(t, lab.Topology{Directors: 2})
	d1, d2 := l.Directors[0], l.Directors[1]
	daemon, err := d1.Start(t.Context(), "daemon", []string{"sh", "-c", "echo up; sleep 1000 & wait"}, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d1.Sysctl("net.ipv4.conf.all.arp_ignore", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := d1.Run(t.Context(), "touch", "/run/mine"); err != nil {
		t.Fatal(err)
	}
	if err := d1.PowerCut(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-daemon.Done():
	default:
		t.Error("a daemon lived through the power cut")
	}
	if err := d1.Do(func() error { return nil }); err == nil {
		t.Error("Do works without power")
	}
	silent(t, d2.Node, d1.Node, "a node without power answers")

	if err := d1.Boot(); err != nil {
		t.Fatal(err)
	}
	reaches(t, d2.Node, d1.Node)
	out, err := d1.Run(t.Context(), "sh", "-c", "cat /proc/sys/net/ipv4/conf/all/arp_ignore; ls /run")
	if err != nil || out != "0\n" {
		t.Errorf("after the boot arp_ignore and /run are %q, %v; want as new", out, err)
	}
}

func TestPowerCutNamesWhoHoldsTheNamespace(t *testing.T) {
	if testing.Short() {
		t.Skip("waits a minute for a namespace that cannot go away")
	}
	l := start(t, lab.Topology{Directors: 1})
	d1 := l.Directors[0]
	var s net.PacketConn
	err := d1.Do(func() (err error) {
		s, err = net.ListenPacket("udp", d1.Addr.String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d1.PowerCut(); err == nil || !strings.Contains(err.Error(), "socket") {
		t.Errorf("a socket holds the namespace, but the power cut says: %v", err)
	}
	s.Close()
}

func TestSplitAndHeal(t *testing.T) {
	l := start(t, lab.Topology{Directors: 3})
	d1, d2, d3 := l.Directors[0].Node, l.Directors[1].Node, l.Directors[2].Node
	if err := l.Split(d1, d2); err != nil {
		t.Fatal(err)
	}
	reaches(t, d1, d2)
	silent(t, d1, d3, "frames pass between the halves")
	// A node that boots meanwhile belongs to the half that it was on.
	if err := errors.Join(d2.PowerCut(), d2.Boot()); err != nil {
		t.Fatal(err)
	}
	silent(t, d2, d3, "a reboot carried a node to the other half")
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	reaches(t, d1, d3)
}

func TestCutLink(t *testing.T) {
	l := start(t, lab.Topology{Directors: 2})
	d1, d2 := l.Directors[0], l.Directors[1]
	if err := d1.CutLink(); err != nil {
		t.Fatal(err)
	}
	if out, err := d1.Run(t.Context(), "cat", "/sys/class/net/eth0/carrier"); err != nil || out != "0\n" {
		t.Errorf("carrier with the link cut: %q, %v", out, err)
	}
	silent(t, d1.Node, d2.Node, "a cut link carries frames")
	if err := d1.RestoreLink(); err != nil {
		t.Fatal(err)
	}
	reaches(t, d1.Node, d2.Node)
}

func TestProcessesHangAndEnd(t *testing.T) {
	l := start(t, lab.Topology{Directors: 1})
	d1 := l.Directors[0]
	// One child, made once: a shell that is stopped with a child of vfork that
	// has not become another program yet waits for it in state D.
	p, err := d1.Start(t.Context(), "p", []string{"sh", "-c", `trap 'echo bye; exit 3' TERM; sleep 60 & while :; do wait; done`}, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	waitState := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
			if err != nil {
				t.Fatal(err)
			}
			_, state, _ := strings.Cut(string(stat), ") ")
			if strings.Contains(want, state[:1]) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("process is in state %q, want one of %s", state[:1], want)
			}
		}
	}
	waitState("S")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	waitState("T")
	if err := p.Cont(); err != nil {
		t.Fatal(err)
	}
	waitState("SR")
	// The shell may not have come to its trap yet: ask until it ends well.
	if err := p.Term(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if p.ExitCode() != 3 && p.ExitCode() != -1 {
		t.Errorf("exit %d", p.ExitCode())
	}
	if _, err := d1.Run(t.Context(), "sh", "-c", "echo why; exit 4"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a failed command's error is %v, want its output in it", err)
	}
}

func TestNetemNeedsNoLuck(t *testing.T) {
	l := start(t, lab.Topology{Directors: 2})
	d1, d2 := l.Directors[0].Node, l.Directors[1].Node
	if err := d1.Netem(100, 0); err != nil {
		t.Skip(err)
	}
	silent(t, d1, d2, "a link that loses all carries frames")
	if err := d1.Netem(0, 0); err != nil {
		t.Fatal(err)
	}
	reaches(t, d1, d2)
}

func TestServicesNeedIPVS(t *testing.T) {
	if lab.HasIPVS() {
		t.Skip("this kernel has IPVS")
	}
	_, err := lab.New(t.Context(), lab.Topology{Services: []lab.Service{{Proto: "tcp", Port: 80}}}, t.TempDir())
	if !errors.Is(err, lab.ErrNoIPVS) {
		t.Errorf("New without IPVS: %v", err)
	}
}

// TestConnectionsThroughIPVS runs on a kernel with IPVS; TestInGuest brings it
// to one.
func TestConnectionsThroughIPVS(t *testing.T) {
	if !lab.HasIPVS() {
		t.Skip(lab.ErrNoIPVS)
	}
	for _, forward := range []lab.Forward{lab.Gate, lab.Masq, lab.IPIP} {
		t.Run(string(forward), func(t *testing.T) { throughIPVS(t, forward) })
	}
}

func throughIPVS(t *testing.T, forward lab.Forward) {
	l := start(t, lab.Topology{
		Directors: 2, RealServers: 1, Clients: 1,
		Services:       []lab.Service{{Proto: "tcp", Port: 80, Forward: forward}},
		VIPOnDirectors: true,
	})
	server, client, d1 := l.RealServers[0], l.Clients[0], l.Directors[0]
	if err := os.WriteFile(filepath.Join(server.Dir, "index.html"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Start(t.Context(), "httpd", []string{"busybox", "httpd", "-f", "-p", "80", "-h", server.Dir}, lab.Options{}); err != nil {
		t.Fatal(err)
	}
	// Nobody answers ARP for the VIP here: that will be saru's task.
	vip := l.Topology.VIP.String()
	if _, err := client.Run(t.Context(), "ip", "neigh", "replace", vip, "lladdr", d1.MAC.String(), "dev", lab.Interface); err != nil {
		t.Fatal(err)
	}
	get := []string{"curl", "-sS", "--retry", "10", "--retry-connrefused", "--max-time", "20", "http://" + vip + "/"}
	if out, err := client.Run(t.Context(), get...); err != nil || out != "hello\n" {
		t.Fatalf("through d1: %q, %v", out, err)
	}
	conns, err := d1.ConnTable()
	if err != nil {
		t.Fatal(err)
	}
	if len(conns) == 0 || conns[0].Client.Addr() != client.Addr || conns[0].Dest.Addr() != server.Addr {
		t.Errorf("d1's connections: %v", conns)
	}

	if err := errors.Join(d1.PowerCut(), d1.Boot()); err != nil {
		t.Fatal(err)
	}
	if conns, err := d1.ConnTable(); err != nil || len(conns) != 0 {
		t.Errorf("after a power cut d1 has %v, %v", conns, err)
	}
	if out, err := client.Run(t.Context(), get...); err != nil || out != "hello\n" {
		t.Errorf("through d1 after its boot: %q, %v", out, err)
	}
	if err := l.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(d1.Dir, "state", "ipvs-services.txt"))
	if err != nil || !strings.Contains(string(text), vip) {
		t.Errorf("collected services: %q, %v", text, err)
	}
}
