package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/control"
	"saru/internal/syncd"
	"saru/test/lab"
)

// A pair with keepalived, VRRP and the kernel's own sync, becomes a pair with
// saru and syncd, and a pair with keepalived again, while its clients talk:
// one that hears of new MACs, and a router that keeps the MAC of the first
// director for as long as the pair is migrated.
func TestMigrationAndBack(t *testing.T) {
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip(err)
	}
	s := newSite(t, lab.Topology{Name: "migration", Directors: 2, RealServers: 2, Clients: 2, Services: []lab.Service{
		// So that IPVS is there, and is asked for. keepalived adds the one in use.
		{Proto: "tcp", Port: talkPort + 1},
	}}, setup{stopped: true})
	s.serveEcho(talkPort)
	m := &migration{site: s, talks: s.talks(), running: map[string]*lab.Process{}}
	d1, d2 := s.lab.Directors[0], s.lab.Directors[1]
	client, router := s.lab.Clients[0], s.lab.Clients[1]
	run := func(n *lab.Node, args ...string) string {
		t.Helper()
		out, err := n.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	vip := s.lab.Topology.VIP.String()
	step := func(what string) {
		t.Helper()
		for _, from := range []*lab.Node{client, router} {
			m.talks.begin(from, 3)
		}
		m.goOn(what)
		time.Sleep(3 * time.Second) // the kernel's own sync tells after two
	}

	m.keepalived(d1, master, true)
	m.holds(d1)
	m.keepalived(d2, standby, true)
	m.syncThread(d2, "backup")
	run(router, "ip", "neigh", "replace", vip, "lladdr", d1.MAC.String(), "dev", lab.Interface, "nud", "permanent")
	step("keepalived on both")

	m.keepalived(d2, standby, false)
	m.noSyncThread(d2)
	m.legacy(d2)
	step("syncd hears the old master")
	m.keepalived(d2, above, false)
	m.holds(d2)
	m.syncThread(d1, "backup")
	step("syncd tells the old director")
	m.keepalived(d1, master, false)
	m.noSyncThread(d1)
	m.legacy(d1)
	step("syncd on both")
	m.start(d2, "saru")
	m.start(d1, "saru")
	m.keepalived(d1, nowhere, false) // who has the address is the last to leave
	m.keepalived(d2, nowhere, false)
	s.whole()
	step("saru on both")
	if st := s.status(d1); st.Filter.Own == 0 || st.Filter.OwnSender != router.MAC.String() {
		t.Errorf("the router's old entry is not named: %d packets, of %s", st.Filter.Own, st.Filter.OwnSender)
	}
	run(router, "ip", "neigh", "del", vip, "dev", lab.Interface)
	step("the router has asked again")

	// And back, in the opposite order.
	m.keepalived(d2, above, false)
	m.holds(d2)
	m.stop(d1, "saru")
	m.stop(d2, "saru")
	step("saru on none")
	m.stop(d1, "syncd")
	m.keepalived(d1, master, true)
	m.syncThread(d1, "backup")
	step("syncd tells the director that is the old one again")
	m.keepalived(d2, standby, false)
	m.holds(d1)
	step("and hears it")
	m.stop(d2, "syncd")
	m.keepalived(d2, standby, true)
	m.syncThread(d2, "backup")
	step("keepalived on both again")
}

// VRRP priorities. Without one there is no VRRP.
const (
	nowhere = 0
	standby = 50
	master  = 100
	above   = 150
)

type migration struct {
	*site
	*talks
	running map[string]*lab.Process // by director and daemon
}

// keepalived starts keepalived on a director, or has it read another
// configuration. It always has the service.
func (m *migration) keepalived(d *lab.Director, priority int, sync bool) {
	t := m.t
	t.Helper()
	var conf strings.Builder
	fmt.Fprintf(&conf, "global_defs {\n router_id %s\n", d.Name)
	if sync {
		fmt.Fprintf(&conf, " lvs_sync_daemon %s VI_1 id 7\n", lab.Interface)
	}
	vip := m.lab.Topology.VIP
	conf.WriteString("}\n")
	if priority > 0 {
		fmt.Fprintf(&conf, "vrrp_instance VI_1 {\n state BACKUP\n interface %s\n virtual_router_id 51\n priority %d\n advert_int 1\n garp_master_refresh 5\n virtual_ipaddress {\n %v/32\n }\n}\n",
			lab.Interface, priority, vip)
	}
	fmt.Fprintf(&conf, "virtual_server %v %d {\n lb_algo rr\n lb_kind DR\n protocol TCP\n", vip, talkPort)
	for _, r := range m.lab.RealServers {
		fmt.Fprintf(&conf, " real_server %v %d {\n weight 1\n }\n", r.Addr, talkPort)
	}
	conf.WriteString("}\n")
	path := filepath.Join(d.Dir, "keepalived.conf")
	if err := os.WriteFile(path, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := m.running[d.Name+" keepalived"]; p != nil {
		if err := unix.Kill(p.Pid(), unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		return
	}
	pid := func(what string) string { return filepath.Join(d.Dir, what+".pid") }
	p, err := d.Start(t.Context(), "keepalived", []string{
		"keepalived", "--dont-fork", "--log-console", "--use-file", path,
		"--pid", pid("main"), "--vrrp_pid", pid("vrrp"), "--checkers_pid", pid("checkers"),
	}, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.running[d.Name+" keepalived"] = p
}

// holds waits until a director has the virtual address by VRRP, and no other
// has.
func (m *migration) holds(d *lab.Director) {
	m.t.Helper()
	vip := m.lab.Topology.VIP.String() + "/32"
	m.eventually(d.Name+" holds the address", func() error {
		for _, o := range m.lab.Directors {
			out, err := o.Run(m.t.Context(), "ip", "addr", "show", "dev", lab.Interface)
			if err != nil {
				return err
			}
			if strings.Contains(out, vip) != (o == d) {
				return fmt.Errorf("%s: %s", o.Name, out)
			}
		}
		return nil
	})
}

// noSyncThread ends the sync thread of a standby: keepalived leaves it when its
// configuration names none any more.
func (m *migration) noSyncThread(d *lab.Director) {
	m.t.Helper()
	if out, err := d.Run(m.t.Context(), "ipvsadm", "--stop-daemon", "backup"); err != nil {
		m.t.Fatalf("%s: %v: %s", d.Name, err, out)
	}
	m.syncThread(d, "")
}

// syncThread waits until a director's kernel has one sync thread, or none.
func (m *migration) syncThread(d *lab.Director, role string) {
	m.t.Helper()
	m.eventually(fmt.Sprintf("%s's sync thread: %q", d.Name, role), func() error {
		out, err := d.Run(m.t.Context(), "ipvsadm", "-L", "--daemon")
		if err != nil {
			return err
		}
		if role == "" && strings.Contains(out, "sync daemon") || !strings.Contains(out, role) {
			return errors.New(out)
		}
		return nil
	})
}

// legacy starts syncd, which speaks the kernel's own protocol too, and waits
// until it is at work.
func (m *migration) legacy(d *lab.Director) {
	m.t.Helper()
	m.running[d.Name+" syncd"] = m.startDaemon(d, "syncd", "[legacy]\ninterface = \"eth0\"\nsyncid = 7\nresend = \"10s\"\n")
	m.eventually("syncd of "+d.Name, func() error {
		var st syncd.Status
		err := control.NewClient(m.socket(d, "syncd")).Get(m.t.Context(), "/status", &st)
		if err == nil && !st.Synced {
			err = errors.New("not synced")
		}
		return err
	})
}

func (m *migration) start(d *lab.Director, daemon string) {
	m.t.Helper()
	m.running[d.Name+" "+daemon] = m.startDaemon(d, daemon, "")
}

func (m *migration) stop(d *lab.Director, daemon string) {
	m.t.Helper()
	p := m.running[d.Name+" "+daemon]
	if err := p.Term(30 * time.Second); err != nil || p.ExitCode() != 0 {
		m.t.Fatalf("%s of %s ended with %d: %v", daemon, d.Name, p.ExitCode(), err)
	}
	delete(m.running, d.Name+" "+daemon)
}
