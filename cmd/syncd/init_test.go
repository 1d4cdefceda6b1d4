package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"saru/internal/testnet"
	"saru/ipvs"
)

// An initd runs the init script of the package, each time in a mount namespace
// of its own, where /etc/default/syncd says where things are.
type initd struct {
	t      *testing.T
	dir    string
	script string
}

// newInitd skips unless this kernel has IPVS, since the daemon itself is run.
func newInitd(t *testing.T) *initd {
	t.Helper()
	c, err := ipvs.Dial()
	if err != nil {
		t.Skipf("cannot speak with IPVS: %v", err)
	}
	c.Close()
	for _, tool := range []string{"start-stop-daemon", "unshare", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	script, err := filepath.Abs("../../packaging/sysv/syncd")
	if err != nil {
		t.Fatal(err)
	}
	return &initd{t, t.TempDir(), script}
}

func (d *initd) path(name string) string { return filepath.Join(d.dir, name) }

// do runs the script with one argument and returns its exit status.
func (d *initd) do(what string) (status int, out string) {
	d.t.Helper()
	// The script's defaults file is bound over the system's, for it alone.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mkdir -p /etc/default && touch /etc/default/syncd && mount --bind "$1" /etc/default/syncd && exec "$2" "$3"`,
		"sh", d.path("default"), d.script, what)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	d.t.Logf("%s: %d %s", what, cmd.ProcessState.ExitCode(), bytes.TrimSpace(b))
	return cmd.ProcessState.ExitCode(), string(b)
}

func (d *initd) want(what string, status int) string {
	d.t.Helper()
	got, out := d.do(what)
	if got != status {
		d.t.Errorf("%s: exit status %d, want %d", what, got, status)
	}
	return out
}

// The init script starts, reloads and stops the daemon, and tells the truth
// about it.
func TestInitScript(t *testing.T) {
	d := newInitd(t)
	bin := d.path("syncd")
	build := os.Getenv("SYNCD_TEST_BINARY")
	if build == "" {
		t.Skip("SYNCD_TEST_BINARY does not name the daemon")
	}
	text, err := os.ReadFile(build)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		bin:               string(text),
		d.path("key"):     "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
		d.path("default"): "DAEMON=" + bin + "\nCONFIG=" + d.path("syncd.toml") + "\nPIDFILE=" + d.path("syncd.pid") + "\n",
	} {
		write(t, path, text)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	configuration := func(more string) {
		write(t, d.path("syncd.toml"), "[sync]\npeers = [\"127.0.0.2\"]\nkey_file = \""+d.path("key")+"\"\n[control]\nmetrics = \"\"\nsocket = \""+d.path("syncd.sock")+"\"\n"+more)
	}
	t.Cleanup(func() { d.do("stop") })

	d.want("status", 3)
	configuration("socket = 7\n")
	d.want("start", 1)
	d.want("status", 3)
	configuration("")
	d.want("start", 0)
	d.want("status", 0)
	d.want("start", 0) // again is no error
	pid := strings.TrimSpace(string(read(t, d.path("syncd.pid"))))
	if _, err := os.Stat(d.path("syncd.sock")); err != nil {
		t.Error(err)
	}
	testnet.Await(t, "the daemon gives up the capabilities that it does not need", func() bool {
		status := string(read(t, "/proc/"+pid+"/status"))
		return strings.Contains(status, "CapEff:\t0000000000003000") && strings.Contains(status, "NoNewPrivs:\t1")
	})
	configuration("[filter]\nservices = [\"10.9.0.100:80\"]\n")
	d.want("reload", 0)
	testnet.Await(t, "the filter is in force", func() bool {
		out, err := runCommand(t, "status", "--json", "--config", d.path("syncd.toml"))
		return err == nil && strings.Contains(out, `"filter": "10.9.0.100:80"`)
	})
	if now := strings.TrimSpace(string(read(t, d.path("syncd.pid")))); now != pid {
		t.Errorf("reload made process %s of %s", now, pid)
	}
	d.want("restart", 0)
	d.want("status", 0)
	if now := strings.TrimSpace(string(read(t, d.path("syncd.pid")))); now == pid {
		t.Error("restart left the process")
	}
	d.want("stop", 0)
	d.want("status", 3)
	d.want("stop", 0)
	if _, err := os.Stat(d.path("syncd.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
	// Killed, it is dead with a pid file, and starts again.
	d.want("start", 0)
	pid = strings.TrimSpace(string(read(t, d.path("syncd.pid"))))
	proc := atoi(t, pid)
	if err := syscall.Kill(proc, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "it is dead", func() bool { return syscall.Kill(proc, 0) != nil })
	d.want("status", 1)
	d.want("start", 0)
	d.want("stop", 0)
	d.want("dance", 2)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
