package syncd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"saru/internal/control"
	"saru/internal/testnet"
)

// The tests of this file need a kernel with IPVS; the second one keepalived,
// too. d1 is a director as they were: its kernel's own sync threads speak.

const legacySection = "[legacy]\ninterface = \"eth0\"\nsyncid = 7\n"

// syncThreads starts the kernel's own on node i, for a group or, if that is
// "", the kernel's.
func (l *realLAN) syncThreads(i int, group string) {
	for _, role := range []string{"master", "backup"} {
		args := []string{"ipvsadm", "--start-daemon", role, "--mcast-interface", "eth0", "--syncid", "7"}
		if group != "" {
			args = append(args, "--mcast-group", group)
		}
		l.run(i, args...)
	}
}

// table returns director i's connections without their expiry, as "state
// client virtual real", sorted.
func (l *realLAN) table(i int) []string { return tcpLines(l.run(i, "ipvsadm", "-Lnc")) }

func tcpLines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "TCP" {
			out = append(out, strings.Join(f[2:], " "))
		}
	}
	slices.Sort(out)
	return slices.Compact(out) // the kernel may list an entry twice
}

// sameTables waits until both directors' kernels list the same.
func (l *realLAN) sameTables() {
	l.t.Helper()
	var d1, d2 []string
	testnet.Await(l.t, "the kernels' tables are equal", func() bool {
		d1, d2 = l.table(0), l.table(1)
		return slices.Equal(d1, d2)
	})
	l.t.Logf("equal tables of %d connections", len(d1))
	testnet.Await(l.t, "syncd conns lists what ipvsadm lists", func() bool { return slices.Equal(l.conns(1), l.table(1)) })
}

// conns is director i's mirror as syncd conns prints it, in table's form.
func (l *realLAN) conns(i int) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	body, err := control.NewClient(l.socket(i)).Do(ctx, http.MethodGet, "/conns?proto=tcp", nil)
	must(l.t, err)
	defer body.Close()
	var text strings.Builder
	for dec := json.NewDecoder(body); ; {
		var c Conn
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return tcpLines(text.String())
		} else if err != nil {
			l.t.Fatal(err)
		}
		must(l.t, c.Print(&text))
	}
}

// established counts director i's established connections that have most of
// their 15 minutes.
func (l *realLAN) established(i int) int {
	n := 0
	for line := range strings.Lines(l.run(i, "ipvsadm", "-Lnc")) {
		if f := strings.Fields(line); len(f) == 6 && f[2] == "ESTABLISHED" && (strings.HasPrefix(f[1], "14:") || f[1] == "15:00") {
			n++
		}
	}
	return n
}

// dialMany opens connections and speaks on each.
func (l *realLAN) dialMany(n int, what string) (conns []net.Conn) {
	for range n {
		conns = append(conns, l.dial())
		echo(l.t, conns[len(conns)-1], what)
	}
	return conns
}

func (l *realLAN) echoAll(conns []net.Conn, what string) {
	l.t.Helper()
	for _, c := range conns {
		echo(l.t, c, what)
	}
}

// A pair of directors with the kernel's own sync is replaced one at a time,
// with flows alive.
func TestLegacyDirectorIsReplaced(t *testing.T) {
	for _, c := range []struct{ name, version, ports, group string }{
		{"version 1", "1", "1", ""},
		{"version 0", "0", "1", ""},
		{"several threads over IPv6", "1", "4", "ff02::81"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newRealLAN(t)
			l.more = legacySection + "version = " + c.version + "\nports = " + c.ports + "\nresend = \"10s\"\n"
			if c.group != "" {
				l.more += "group = \"[" + c.group + "]:8848\"\n"
			}
			l.serve()
			l.run(0, "sysctl", "-qw", "net.ipv4.vs.sync_version="+c.version, "net.ipv4.vs.sync_ports="+c.ports)
			l.before[0] = l.run(0, "sysctl", "net.ipv4.vs")
			l.syncThreads(0, c.group)
			l.via(0)
			l.start(1)
			l.synced(1)

			// What the old director serves, the new one knows.
			const many = 10
			conns := l.dialMany(many, "by the old d1")
			testnet.Await(t, "d2's kernel has them", func() bool { return l.established(1) == many })
			l.sameTables()
			l.via(1)
			l.echoAll(conns, "by d2")

			// And the other way: new ones, and what ends.
			conns = append(conns, l.dialMany(many, "by d2")...)
			testnet.Await(t, "d1's kernel has the new ones", func() bool { return l.established(0) == 2*many })
			for _, c := range conns[:many/2] {
				c.Close()
			}
			conns = conns[many/2:]
			testnet.Await(t, "d1's kernel saw some close", func() bool {
				return strings.Count(l.run(0, "ipvsadm", "-Lnc"), "FIN_WAIT") == many/2
			})
			l.sameTables()
			l.via(0)
			l.echoAll(conns, "by the old d1 again")

			// The old one goes.
			l.via(1)
			for _, role := range []string{"master", "backup"} {
				l.run(0, "ipvsadm", "--stop-daemon", role)
			}
			l.start(0)
			l.synced(0)
			l.via(0)
			l.echoAll(conns, "by the new d1")
			conns = append(conns, l.dialMany(many, "by the new d1")...)
			testnet.Await(t, "d2's kernel has what the new d1 serves", func() bool { return l.established(1) == len(conns) })
			l.via(1)
			l.echoAll(conns, "by d2 in the end")

			for i := range 2 {
				st := l.status(i)
				if st.Kernel.Drops != 0 || st.Legacy.Down != "" || st.Legacy.Drops["unsound"]+st.Legacy.Drops["datagram_malformed"]+st.Legacy.Drops["datagram_send"] != 0 {
					t.Errorf("d%d: %+v %+v", i+1, st, st.Legacy)
				}
				t.Logf("d%d: %+v", i+1, *st.Legacy)
			}
			// Two syncds that hear each other there do not take it for news.
			testnet.Await(t, "d1 hears what d2 tells legacy directors", func() bool { return l.status(0).Legacy.Drops["syncd"] > 0 })
			if st := l.status(0).Legacy; st.Taken != 0 {
				t.Errorf("d1 took %d records", st.Taken)
			}
			for i := range 2 {
				l.stop(i)
				l.asBefore(i)
			}
		})
	}
}

const keepalivedD1 = `global_defs {
  router_id d1
  lvs_sync_daemon eth0 VI_1 id 7
}
vrrp_instance VI_1 {
  state BACKUP
  interface eth0
  virtual_router_id 51
  priority 100
  advert_int 1
  virtual_ipaddress { 10.97.1.200/32 }
}
virtual_server 10.97.1.100 80 {
  lb_algo rr
  lb_kind DR
  protocol TCP
  real_server 10.97.0.4 80 { weight 1 }
}
`

// rival is who takes the address from d1, and serves nothing.
const keepalivedRival = `global_defs { router_id rival }
vrrp_instance VI_1 {
  state BACKUP
  interface eth0
  virtual_router_id 51
  priority 200
  advert_int 1
  virtual_ipaddress { 10.97.1.200/32 }
}
`

// keepalived runs on node i until the test ends, or what it returns is called.
func (l *realLAN) keepalived(i int, conf string) (stop func()) {
	l.t.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("keepalived%d.conf", i))
	must(l.t, os.WriteFile(path, []byte(conf), 0o600))
	pid := func(what string) string { return filepath.Join(l.dir, fmt.Sprintf("keepalived%d.%s.pid", i, what)) }
	cmd := exec.Command("keepalived", "--dont-fork", "--log-console", "--use-file", path,
		"--pid", pid("main"), "--vrrp_pid", pid("vrrp"), "--checkers_pid", pid("checkers"))
	log, err := os.Create(filepath.Join(l.dir, fmt.Sprintf("keepalived%d.log", i)))
	must(l.t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(l.t, testnet.Within(l.Nodes[i], cmd.Start))
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait() // its status is no matter
		log.Close()
		if l.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			l.t.Logf("keepalived of node %d:\n%s", i, text)
		}
	}
	l.t.Cleanup(stop)
	return stop
}

func TestKeepalivedIsReplaced(t *testing.T) {
	l := newRealLAN(t)
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("needs keepalived")
	}
	l.more = legacySection
	l.serve()
	l.run(0, "ipvsadm", "-C")
	l.via(0)
	l.start(1)
	l.synced(1)
	stop := l.keepalived(0, keepalivedD1)
	daemon := func(role string) func() bool {
		return func() bool { return strings.Contains(l.run(0, "ipvsadm", "-L", "--daemon"), role+" sync daemon") }
	}
	testnet.Await(t, "keepalived's master thread", daemon("master"))
	testnet.Await(t, "keepalived's service", func() bool { return strings.Contains(l.run(0, "ipvsadm", "-Ln"), "10.97.0.4:80") })
	const many = 10
	conns := l.dialMany(many, "by keepalived's d1")
	testnet.Await(t, "d2's kernel has them", func() bool { return l.established(1) == many })

	// The address moves away, and with it the clients, to d2.
	stopRival := l.keepalived(nodeClient, keepalivedRival)
	testnet.Await(t, "keepalived's backup thread", daemon("backup"))
	l.via(1)
	l.echoAll(conns, "by d2")
	conns = append(conns, l.dialMany(many, "by d2")...)
	testnet.Await(t, "keepalived's kernel has the new ones", func() bool { return l.established(0) == 2*many })
	l.sameTables()
	// And back.
	stopRival()
	testnet.Await(t, "keepalived's master thread again", daemon("master"))
	l.via(0)
	l.echoAll(conns, "by keepalived's d1 again")

	// keepalived is replaced.
	l.via(1)
	stop()
	l.run(0, "ipvsadm", "-A", "-t", testVIP+":80", "-s", "rr")
	l.run(0, "ipvsadm", "-a", "-t", testVIP+":80", "-r", "10.97.0.4:80", "-g")
	l.start(0)
	l.synced(0)
	l.via(0)
	l.echoAll(conns, "by d1 with syncd")
	for i := range 2 {
		l.stop(i)
	}
}
