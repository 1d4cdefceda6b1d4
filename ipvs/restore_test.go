package ipvs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/config"
	"saru/syncproto/kernelsync"
)

// everything is what a Tap may touch.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, s := range (&Config{}).sysctls() {
		v, err := readSysctl(s.Name)
		fmt.Fprintln(&b, s.Name, v, err)
	}
	for _, args := range [][]string{{"ip", "-o", "addr"}, {"nft", "list", "ruleset"}, {"ipvsadm", "-l", "--daemon"}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		fmt.Fprintln(&b, args, string(out), err)
	}
	return b.String()
}

// TestCloseRestores: after Close all is as before, and the heartbeat's
// entries are gone; also if a Tap in between ended without Close.
func TestCloseRestores(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if err := writeSysctl("sync_threshold", "2 77"); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	cfg := testConfig(t)
	for _, crash := range []bool{false, true, false} {
		tap, err := OpenTap(testLog(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if everything(t) == before {
			t.Fatal("the tap changed nothing that this test sees")
		}
		stop := running(t, tap)
		if _, err := OpenTap(testLog(t), cfg); config.ExitStatus(err) != config.BadInputStatus {
			t.Errorf("a second tap: %v", err)
		}
		if crash {
			tap.cfg.Keep = true // all that a crash leaves
		}
		stop()
		if crash {
			continue
		}
		if after := everything(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		eventually(t, "heartbeat entries gone", func() bool {
			n := 0
			if err := ReadConns(nil, func(e *Entry) error {
				if IsBeat(&e.Connection) {
					n++
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
		if _, err := os.Stat(cfg.StateFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state file after a clean stop: %v", err)
		}
	}
}

// TestQueueRoom: while a Tap runs, enough records may wait for the kernel's
// thread; more than that stays, and what was before comes back. That holds too
// after an earlier version was killed, which left that setting alone and did
// not note it.
func TestQueueRoom(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		was, want string
		upgrade   bool
	}{{"100", "131072", false}, {"131072", "131072", false}, {"200000", "200000", false}, {"300", "131072", true}} {
		cfg := testConfig(t)
		if err := writeSysctl(sysctlQueue, tt.was); err != nil {
			t.Fatal(err)
		}
		before := everything(t)
		if tt.upgrade {
			left, err := here()
			if err != nil {
				t.Fatal(err)
			}
			left.Sysctls = []setting{{"sync_threshold", "3 50"}}
			if err := left.store(cfg.StateFile); err != nil {
				t.Fatal(err)
			}
		}
		tap, err := OpenTap(testLog(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := readSysctl(sysctlQueue); err != nil || now != tt.want {
			t.Errorf("%s is %s, %v, after %s; want %s", sysctlQueue, now, err, tt.was, tt.want)
		}
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
		if after := everything(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

// TestKilled: what a killed process left is not taken for somebody else's,
// costs no error messages meanwhile, and the next Tap puts the originals back.
func TestKilled(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if err := writeSysctl("sync_threshold", "2 77"); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	dir := t.TempDir()
	d := startDirector(t, dir, 0)
	d.ask("find", conntable.Connection{}) // answers once it runs
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	if left := everything(t); !strings.Contains(left, "syncd0") || !strings.Contains(left, "0\t0") {
		t.Errorf("a killed process left nothing, so this test shows nothing:\n%s", left)
	}
	listening(t)
	for range 3 { // records that the master thread sends to nobody
		c, err := net.Dial("tcp", vip+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	time.Sleep(3 * time.Second)
	tap, err := OpenTap(testLog(t), Config{StateFile: filepath.Join(dir, "b.json")})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, tap)
	if ok, why := tap.Healthy(); !ok {
		t.Error(why)
	}
	stop()
	if after := everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if log, err := exec.Command("dmesg").Output(); err == nil && strings.Contains(string(log), "ip_vs_send_async error") {
		t.Errorf("the kernel logged:\n%s", log)
	}
}

// TestForeignThread: sync threads of somebody else are refused, and nothing
// is changed.
func TestForeignThread(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"master", "backup"} {
		if err := ipvsadm("--start-daemon", role, "--mcast-interface", "lo", "--syncid", "7"); err != nil {
			t.Fatal(err)
		}
		before := everything(t)
		_, err := OpenTap(testLog(t), testConfig(t))
		if config.ExitStatus(err) != config.BadInputStatus {
			t.Fatalf("beside a foreign %s thread: %v", role, err)
		}
		t.Log(err)
		for _, part := range []string{role, `"lo"`, "7", "--stop-daemon", "[legacy]"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not name %q", err, part)
			}
		}
		if after := everything(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if err := ipvsadm("--stop-daemon", role); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHeals: threads stopped and entries cleared by somebody else come back
// by themselves.
func TestHeals(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	guarded := func() bool { ok, err := tap.guard.present(); return err == nil && ok }
	beating := func(since time.Time) func() bool {
		return func() bool { ok, _ := tap.Healthy(); return ok && tap.LastBeat().After(since) }
	}
	for what, args := range map[string][]string{
		"services cleared":      {"ipvsadm", "-C"},
		"master thread stopped": {"ipvsadm", "--stop-daemon", "master"},
		"backup thread stopped": {"ipvsadm", "--stop-daemon", "backup"},
		"ruleset flushed":       {"nft", "flush", "ruleset"},
		"guard's rules flushed": {"nft", "flush", "table", "ip", tap.cfg.Interface},
		"settings changed": {
			"sysctl", "-qw", "net.ipv4.vs.sync_version=0", "net.ipv4.vs.sync_persist_mode=1", "net.ipv4.vs.sync_threshold=3 50",
			"net.ipv4.vs.backup_only=1", "net.ipv4.vs.sync_qlen_max=100", "net.ipv4.vs.sync_refresh_period=7",
		},
		"interface down":           {"ip", "link", "set", tap.cfg.Interface, "down"},
		"interface's address gone": {"ip", "address", "flush", "dev", tap.cfg.Interface},
		"interface deleted":        {"ip", "link", "delete", tap.cfg.Interface},
	} {
		eventually(t, "guard put back", guarded)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", what, err, out)
		}
		if what == "services cleared" {
			if err := serve(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "beating after "+what, beating(time.Now().Add(200*time.Millisecond)))
	}
	eventually(t, "guard put back", guarded)
	eventually(t, "the stopped thread's losses counted", func() bool { return tap.Lost() > 0 })
	for _, s := range tap.cfg.sysctls() {
		if s.Name == sysctlRefresh {
			s.Was = seconds(tap.Stats().Refresh)
		}
		eventually(t, s.Name+" put back", func() bool { now, err := readSysctl(s.Name); return err == nil && s.holds(now) })
	}
}

// TestLost: what the backup thread's socket has no room for is counted.
func TestLost(t *testing.T) {
	if !inside(t) {
		return
	}
	tap := servingTap(t)
	if n := tap.Lost(); n != 0 {
		t.Fatalf("%d lost before anything was sent", n)
	}
	msg, _, err := kernelsync.AppendMessage(nil, tap.cfg.InjectID, injectMax, bulk(injectRecords))
	if err != nil {
		t.Fatal(err)
	}
	for range 4096 { // 64 MiB of the socket's 16, without a look at how it copes
		if _, err := unix.Write(tap.inj.fd, msg); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "losses counted", func() bool { return tap.Lost() > 0 })
}
