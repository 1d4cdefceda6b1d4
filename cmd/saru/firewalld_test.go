package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// firewalld, the program itself, starts beside saru, is reloaded and leaves: its
// rules come and go in tables of its own, and the share goes on.
func TestFirewalld(t *testing.T) {
	for _, program := range []string{"firewalld", "firewall-cmd", "firewall-offline-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	l := newLab(t, 2, "")
	l.start()
	stop := l.traffic()
	defer stop()
	d1 := l.nodes[0]
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
	l.report("firewalld", mark)
	if s := l.seen.Between(mark, time.Now().Add(-100*time.Millisecond)); s.By["d1"] == 0 || s.Lost > s.Sent/10 {
		t.Errorf("%d of %d datagrams lost, accepted by %v", s.Lost, s.Sent, s.By)
	}
	if st, err := d1.status(); err != nil || st.Filter.Resets > 0 || !st.Filter.Intact {
		t.Errorf("firewalld touched the table: %+v, %v", st.Filter, err)
	}
	stop()
	l.neverTwice()
}
