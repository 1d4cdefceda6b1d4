package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const packaging = "../../packaging"

// unitValue returns the value of a key of saru's systemd unit.
func unitValue(t *testing.T, key string) string {
	t.Helper()
	b, err := os.ReadFile(packaging + "/systemd/saru.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return value
		}
	}
	t.Fatalf("the unit has no %s", key)
	return ""
}

// With no more than the unit's capabilities and no new ones saru serves, tells
// systemd when it does, and keeps its watchdog content.
func TestUnderSystemdsRules(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip(err)
	}
	l := newLab(t, 1, "")
	d := l.nodes[0]
	path := filepath.Join(l.dir, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	l.must(err)
	told := make(chan string, 100)
	l.goUntilEnd(func() { socket.Close() }, func() {
		buf := make([]byte, 256)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			select {
			case told <- string(buf[:n]):
			default:
			}
		}
	})
	var caps []string
	for _, c := range strings.Fields(unitValue(t, "CapabilityBoundingSet")) {
		caps = append(caps, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	d.startWith([]string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=300000"},
		"setpriv", "--no-new-privs", "--bounding-set", "-all,"+strings.Join(caps, ","))
	expect := func(want string) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case <-timeout:
				t.Fatalf("systemd was not told %s", want)
			}
		}
	}
	expect("READY=1")
	l.until("serves", l.shared(1))
	for range 3 {
		expect("WATCHDOG=1")
	}
	if st, err := d.status(); err != nil || !st.Engine.Realtime {
		t.Errorf("no real-time class under the unit's rules: %+v, %v", st, err)
	}
	d.signal(syscall.SIGTERM)
	expect("STOPPING=1")
	if code := d.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.clean(d)
}

// systemd itself finds nothing wrong with the unit.
func TestUnitIsSound(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	b, err := os.ReadFile(packaging + "/systemd/saru.service")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "saru.service")
	text := strings.ReplaceAll(string(b), "/usr/sbin/saru", exe)
	text = strings.ReplaceAll(text, "Documentation=man:saru(8)\n", "") // it would ask man
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || strings.Contains(string(out), "saru.service") {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
	sleep := sleepUnit(t, filepath.Dir(unit), exe)
	if out, err := exec.Command("systemd-analyze", "verify", unit, sleep).CombinedOutput(); err != nil || strings.Contains(string(out), "saru-sleep.service:") {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=45", unit).CombinedOutput()
	if err != nil && strings.Contains(string(out), "exposure") {
		t.Errorf("systemd-analyze security: %v: %s", err, out)
	}
}

// sleepUnit returns the unit that gives the share away before a sleep, of this
// binary, beside its daemon's.
func sleepUnit(t *testing.T, dir, exe string) string {
	t.Helper()
	b, err := os.ReadFile(packaging + "/systemd/saru-sleep.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "saru-sleep.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/sbin/saru", exe)), 0o644); err != nil {
		t.Fatal(err)
	}
	return unit
}

// The script for SysV init starts saru, tells its status, and stops it.
func TestInitScript(t *testing.T) {
	if _, err := exec.LookPath("start-stop-daemon"); err != nil {
		t.Skip(err)
	}
	l := newLab(t, 1, "")
	d := l.nodes[0]
	exe, err := os.Executable()
	l.must(err)
	script := func(args ...string) (string, int) {
		cmd := exec.Command("sh", append([]string{packaging + "/sysv/saru"}, args...)...)
		cmd.Env = append(os.Environ(), runMain+"=1", "DAEMON="+exe, "CONFIG="+d.conf, "PIDFILE="+l.dir+"/pid")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := in(d.ns, cmd.Run); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), cmd.ProcessState.ExitCode()
	}
	if out, code := script("status"); code == 0 {
		t.Errorf("status before the start: %d %s", code, out)
	}
	if out, code := script("start"); code != 0 {
		t.Fatalf("start: %d %s", code, out)
	}
	t.Cleanup(func() { script("stop") })
	l.until("serves", func(map[string]int) bool {
		st, err := d.status()
		return err == nil && st.Share.Buckets == 256
	})
	for _, args := range []string{"status", "start", "reload"} {
		if out, code := script(args); code != 0 {
			t.Errorf("%s: %d %s", args, code, out)
		}
	}
	if out, err := d.saru("events"); err != nil || !strings.Contains(out, "the configuration was reloaded") {
		t.Errorf("after a reload: %v %s", err, out)
	}
	if out, code := script("stop"); code != 0 {
		t.Errorf("stop: %d %s", code, out)
	}
	if out, code := script("status"); code == 0 {
		t.Errorf("status after the stop: %d %s", code, out)
	}
	l.clean(d)
	b, err := os.ReadFile(d.conf)
	l.must(err)
	l.must(os.WriteFile(d.conf, append(b, "colour = 1\n"...), 0o600))
	if out, code := script("start"); code != 2 || !strings.Contains(out, "colour") {
		t.Errorf("start with a bad configuration: %d %s", code, out)
	}
}
