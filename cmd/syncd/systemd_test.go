package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"saru/internal/testnet"
)

// A systemd is a service manager with the package's unit and next to nothing
// else, as the first process of namespaces of its own.
type systemd struct {
	t     *testing.T
	units string // the folder of its units
	pid   int
}

// newSystemd skips unless it is in a guest, since the unit names places such as
// /usr/sbin and /etc/saru, and has systemd there.
func newSystemd(t *testing.T) *systemd {
	t.Helper()
	if os.Getenv("SARU_LAB_KERNEL") == "" {
		t.Skip("installs the daemon: only in a guest of the lab")
	}
	const manager = "/lib/systemd/systemd"
	if _, err := os.Stat(manager); err != nil {
		t.Skip(err)
	}
	s := &systemd{t: t, units: t.TempDir()}
	for _, name := range []string{"basic.target", "sysinit.target", "shutdown.target", "network-online.target", "default.target"} {
		write(t, filepath.Join(s.units, name), "[Unit]\nDefaultDependencies=no\n")
	}
	s.install("../../packaging/systemd/syncd.service", filepath.Join(s.units, "syncd.service"), 0o644)
	s.install("/lib/systemd/system/modprobe@.service", filepath.Join(s.units, "modprobe@.service"), 0o644)
	// What is on the way to the manager's end is ended with it.
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc", "--cgroup",
		"sh", "-c", `mount -t tmpfs none /run && { mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup; } &&
		exec "$0" --system --unit=default.target --log-target=console --log-level=notice --show-status=0`, manager)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "container=lab", "SYSTEMD_UNIT_PATH=" + s.units}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("systemd:\n%s", said.Bytes())
		}
	})
	testnet.Await(t, "the first process of the namespaces", func() bool {
		child, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		s.pid, _ = strconv.Atoi(strings.TrimSpace(string(child)))
		return s.pid > 0
	})
	var out []byte
	var err error
	for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(time.Second) {
		if out, err = s.inside("systemctl", "list-units").CombinedOutput(); err == nil {
			return s
		}
	}
	t.Fatalf("systemd does not answer: %v: %s", err, out)
	return nil
}

func (s *systemd) install(from, to string, mode os.FileMode) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(to, read(s.t, from), mode); err != nil {
		s.t.Fatal(err)
	}
}

// inside is a command in the manager's namespaces.
func (s *systemd) inside(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(s.pid), "--mount", "--pid", "--"}, args...)...)
}

// do runs systemctl, which must succeed or not.
func (s *systemd) do(succeeds bool, args ...string) {
	s.t.Helper()
	out, err := s.inside(append([]string{"systemctl"}, args...)...).CombinedOutput()
	s.t.Logf("systemctl %s: %v %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	if (err == nil) != succeeds {
		s.t.Errorf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// property is what the manager says of the service.
func (s *systemd) property(name string) string {
	s.t.Helper()
	out, err := s.inside("systemctl", "show", "--value", "--property="+name, "syncd").CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl show: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// The unit of the package under a real systemd: it starts when syncd is ready,
// reloads, starts anew a syncd that hangs, does not insist on a bad
// configuration, and stops without leaving anything.
func TestSystemd(t *testing.T) {
	build := os.Getenv("SYNCD_TEST_BINARY")
	if build == "" {
		t.Skip("SYNCD_TEST_BINARY does not name the daemon")
	}
	s := newSystemd(t)
	s.install(build, "/usr/sbin/syncd", 0o755)
	if err := os.MkdirAll("/etc/saru", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/saru/cluster.key", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
	configuration := func(more string) {
		write(t, "/etc/saru/syncd.toml", "[sync]\npeers = [\"127.0.0.2\"]\n"+more)
	}
	configuration("")
	// A watchdog for which a test can wait.
	drop := filepath.Join(s.units, "syncd.service.d")
	if err := os.Mkdir(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(drop, "test.conf"), "[Service]\nWatchdogSec=6\n")
	s.do(true, "daemon-reload")

	s.do(true, "start", "syncd")
	if got := s.property("ActiveState"); got != "active" {
		t.Errorf("it is %s after a start", got)
	}
	pid := s.property("MainPID")
	testnet.Await(t, "it gives up the capabilities that it does not need", func() bool {
		out, err := s.inside("cat", "/proc/"+pid+"/status").Output()
		return err == nil && bytes.Contains(out, []byte("CapEff:\t0000000000003000")) && bytes.Contains(out, []byte("Seccomp:\t2"))
	})
	testnet.Await(t, "systemd is told how it is", func() bool { return strings.Contains(s.property("StatusText"), "0 of 0 peers up") })

	configuration("[filter]\nservices = [\"10.9.0.100:80\"]\n")
	s.do(true, "reload", "syncd")
	testnet.Await(t, "the filter is in force", func() bool {
		out, err := s.inside("/usr/sbin/syncd", "status", "--json").Output()
		return err == nil && bytes.Contains(out, []byte(`"filter": "10.9.0.100:80"`))
	})
	if now := s.property("MainPID"); now != pid {
		t.Errorf("reload made process %s of %s", now, pid)
	}

	if out, err := s.inside("kill", "-STOP", pid).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for deadline := time.Now().Add(time.Minute); s.property("NRestarts") == "0" || s.property("ActiveState") != "active"; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("one that hangs is not started anew: it is %s, by %s, with exit status %s",
				s.property("ActiveState"), s.property("Result"), s.property("ExecMainStatus"))
		}
	}
	s.do(true, "stop", "syncd")
	if out, _ := exec.Command("ipvsadm", "-L", "--daemon").CombinedOutput(); len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("sync threads are left: %s", out)
	}
	if _, err := os.Stat("/sys/class/net/syncd0"); err == nil {
		t.Error("the tap's interface is left")
	}

	configuration("[kernel]\nlimit = 0\n")
	s.do(false, "start", "syncd")
	time.Sleep(3 * time.Second) // longer than RestartSec
	if state, status := s.property("ActiveState"), s.property("ExecMainStatus"); state != "failed" || status != "2" {
		t.Errorf("with a bad configuration it is %s with exit status %s", state, status)
	}
}
