package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"saru/test/datagrams"
)

// firewalld, the program itself, starts beside saru, is reloaded and leaves: its
// rules come and go in tables of its own, and the share goes on. While firewalld
// loads its rules anew it drops, by a table that it makes for that time, all
// that belongs to no known connection, and these datagrams, which nobody answers,
// belong to none. So every datagram is admitted, and what is lost, is lost then.
func TestFirewalld(t *testing.T) {
	for _, program := range []string{"firewalld", "firewall-cmd", "firewall-offline-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	l := newLab(t, 2, "")
	l.start()
	before := l.admitted()
	stop := l.traffic()
	defer stop()
	d1 := l.nodes[0]
	closed := d1.watchTable("firewalld_policy_drop")
	config, bus := filepath.Join(l.dir, "firewalld"), "unix:path="+filepath.Join(l.dir, "bus")
	l.must(os.Mkdir(config, 0o755))
	for _, port := range []string{fmt.Sprintf("%d/udp", service), "7946/tcp", "7946/udp", "7947/udp"} {
		out, err := exec.Command("firewall-offline-cmd", "--system-config", config, "--zone=public", "--add-port="+port).CombinedOutput()
		if err != nil {
			t.Fatalf("firewall-offline-cmd: %v: %s", err, out)
		}
	}
	daemon := func(args ...string) *exec.Cmd {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)
		l.must(in(d1.ns, cmd.Start))
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		})
		return cmd
	}
	daemon("dbus-daemon", "--session", "--nofork", "--nopidfile", "--address="+bus)
	firewalld := daemon("firewalld", "--nofork", "--nopid", "--system-config", config)
	ask := func(args ...string) error {
		cmd := exec.Command("firewall-cmd", args...)
		cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("firewall-cmd %v: %w: %s", args, err, out)
		}
		return nil
	}
	mark := time.Now()
	l.eventually("firewalld runs", func() string {
		if err := ask("--state"); err != nil {
			return err.Error()
		}
		return ""
	})
	for _, how := range []string{"--reload", "--complete-reload", "--reload"} {
		l.must(ask(how))
	}
	l.must(firewalld.Process.Signal(os.Interrupt))
	_ = firewalld.Wait() // how it ends is its own business
	l.until("two share still", l.shared(2))
	whole := l.report("firewalld", mark)
	stop()
	var during datagrams.Summary
	spans := closed()
	for _, c := range spans {
		const late = 50 * time.Millisecond // that the monitor may be
		s := l.seen.Between(c[0].Add(-late), c[1].Add(late))
		during.Sent, during.Lost = during.Sent+s.Sent, during.Lost+s.Lost
	}
	sent, _ := l.seen.Counts()
	t.Logf("firewalld closed %d times; %d of %d datagrams were lost meanwhile, %d of %d at other times; %d of %d were admitted",
		len(spans), during.Lost, during.Sent, whole.Lost-during.Lost, whole.Sent-during.Sent, l.admitted()-before, sent)
	if other := whole.Lost - during.Lost; whole.By["d1"] == 0 || other > whole.Sent/200 {
		t.Errorf("%d of %d datagrams lost while firewalld was not loading rules, accepted by %v", other, whole.Sent-during.Sent, whole.By)
	}
	if refused := sent - int(l.admitted()-before); refused > sent/200 {
		t.Errorf("%d of %d datagrams were not admitted", refused, sent)
	}
	if st, err := d1.status(); err != nil || st.Filter.Resets > 0 || !st.Filter.Intact {
		t.Errorf("firewalld touched the table: %+v, %v", st.Filter, err)
	}
	l.neverTwice()
}

// admitted returns how many packets the directors' filters have let in.
func (l *lab) admitted() (n uint64) {
	l.Helper()
	for _, d := range l.nodes {
		st, err := d.status()
		l.must(err)
		n += st.Filter.Accepted
	}
	return n
}

// watchTable notes from when to when n's kernel has a table of family inet,
// until what it returns is called.
func (n *node) watchTable(name string) (spans func() [][2]time.Time) {
	n.Helper()
	cmd := exec.Command("nft", "monitor", "tables")
	out, err := cmd.StdoutPipe()
	n.must(err)
	n.must(in(n.ns, cmd.Start))
	done := make(chan struct{})
	var all [][2]time.Time
	go func() {
		defer close(done)
		var since time.Time
		for lines := bufio.NewScanner(out); lines.Scan(); {
			switch lines.Text() {
			case "add table inet " + name:
				since = time.Now()
			case "delete table inet " + name:
				all = append(all, [2]time.Time{since, time.Now()})
			}
		}
	}()
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait() // killed
	})
	n.Cleanup(end)
	return func() [][2]time.Time {
		end()
		return all
	}
}
