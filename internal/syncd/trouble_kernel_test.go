package syncd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/testnet"
)

// The tests of this file need a kernel with IPVS, of a guest: they set its
// clock, and fill a disk.

func inGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("SARU_LAB_KERNEL") == "" {
		t.Skip("sets the machine's clock: only in a guest of the lab")
	}
}

// jump sets the wall clock by d.
func jump(t *testing.T, d time.Duration) {
	t.Helper()
	ts, err := unix.TimeToTimespec(time.Now().Round(0).Add(d))
	must(t, err)
	must(t, unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
}

// A clock that jumps, forwards and back, is no matter: news goes on, nothing
// ends before its time, and what is told after a jump back is not older.
func TestClockJumps(t *testing.T) {
	inGuest(t)
	l := newRealLAN(t)
	l.serve()
	l.via(0)
	for i := range 2 {
		l.start(i)
		l.synced(i)
	}
	known := func(what string, want int) {
		t.Helper()
		testnet.Await(t, fmt.Sprintf("%s: d2's kernel has %d connections", what, want), func() bool {
			return strings.Count(l.run(1, "ipvsadm", "-Lnc"), "ESTABLISHED") == want
		})
	}
	const many = 5
	old := l.dialMany(many, "before")
	known("before", many)
	for i, d := range []time.Duration{time.Hour, -3 * time.Hour, 2 * time.Hour} {
		jump(t, d)
		left := many - 1 - i
		conns := l.dialMany(many, "after a jump")
		old[i].Close()
		known(fmt.Sprintf("after a jump by %v", d), left+many)
		for _, c := range conns {
			c.Close()
		}
		known("when the new ones ended", left)
	}
	for i := range 2 {
		st := l.status(i)
		if st.Drops["late"] != 0 || st.Records["late"] != 0 || len(st.Peers) != 1 || st.Peers[0].State != "up" {
			t.Errorf("d%d: %+v", i+1, st)
		}
	}
}

// On a full disk syncd does not start, says so, and changes nothing.
func TestFullDisk(t *testing.T) {
	inGuest(t)
	l := newRealLAN(t)
	disk := filepath.Join(l.dir, "full")
	must(t, os.Mkdir(disk, 0o700))
	must(t, unix.Mount("none", disk, "tmpfs", 0, "size=16k"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	if err := os.WriteFile(filepath.Join(disk, "rest"), make([]byte, 64<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	path := filepath.Join(l.dir, "full.toml")
	must(t, os.WriteFile(path, fmt.Appendf(nil, "[sync]\ninterface = \"eth0\"\nkey_file = %q\n[control]\nmetrics = \"\"\nsocket = %q\n",
		filepath.Join(l.dir, "key"), filepath.Join(disk, "d1.sock")), 0o600))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envDirector+"="+path)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := testnet.Within(l.Nodes[0], cmd.Run); err == nil || cmd.ProcessState.ExitCode() != config.BadInputStatus || !strings.Contains(said.String(), "no space left on device") {
		t.Errorf("%v, and said %s", err, said.String())
	}
	l.asBefore(0)
}
