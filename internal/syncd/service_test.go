package syncd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/syncproto/peer/peertest"
)

// A systemd that listens to us, with a watchdog of the given period.
func fakeSystemd(t *testing.T, limit time.Duration) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int(limit/time.Microsecond)))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	return c
}

// heard returns the next message to systemd, or "" if there is none within d.
func heard(t *testing.T, c *net.UnixConn, d time.Duration) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	must(t, err)
	return string(buf[:n])
}

func TestWatchdog(t *testing.T) {
	if newWatchdog(slog.Default(), nil) != nil && os.Getenv("NOTIFY_SOCKET") == "" {
		t.Error("a watchdog without systemd")
	}
	systemd := fakeSystemd(t, 60*time.Millisecond)
	e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler)})
	e.SetKernel(newFakeKernel())
	w := newWatchdog(slog.New(slog.DiscardHandler), e)
	if w == nil || w.limit != 60*time.Millisecond || w.every != 20*time.Millisecond {
		t.Fatalf("%+v", w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for range 3 {
		if got := heard(t, systemd, time.Minute); !strings.Contains(got, "WATCHDOG=1") || !strings.Contains(got, "STATUS=joining, 0 of 0 peers up, 0 connections") {
			t.Errorf("systemd heard %q", got)
		}
	}
	// Nobody sends what waits: the engine does not run.
	c := tcp(1, established, time.Minute)
	e.Captured(&c)
	for deadline := time.Now().Add(time.Minute); heard(t, systemd, time.Second) != ""; {
		if time.Now().After(deadline) {
			t.Fatal("the watchdog is fed though news does not go out")
		}
	}
	cancel()
	must(t, <-done)
}

// configured returns where a configuration is to be, and a key file.
func configured(t *testing.T) (path, key string) {
	dir := t.TempDir()
	key = filepath.Join(dir, "key")
	must(t, os.WriteFile(key, []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
	return filepath.Join(dir, "syncd.toml"), key
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, peertest.New(1), 1, newFakeKernel())
		path, key := configured(t)
		put := func(sync, more string) {
			must(t, os.WriteFile(path, []byte("[sync]\ninterface = \"lo\"\nkey_file = \""+key+"\"\n"+sync+more), 0o600))
		}
		put("", "")
		s, err := Load(path)
		must(t, err)
		var out bytes.Buffer
		var level slog.LevelVar
		log := slog.New(slog.NewTextHandler(&out, nil))
		r := &reloader{Options: Options{Config: path, Level: &level}, log: log, engine: a.Engine, now: s}
		says := func(want string) {
			t.Helper()
			out.Reset()
			r.reload()
			if !strings.Contains(out.String(), want) {
				t.Errorf("the log says\n%swant %s", out.String(), want)
			}
		}
		says("changed=[]")
		put("", "[filter]\nservices = [\"10.9.0.100:80\"]\n[control]\ndebug = true\n")
		says(`changed="[filter control.debug]"`)
		if a.Status().Filter != "10.9.0.100:80" || level.Level() != slog.LevelDebug {
			t.Errorf("filter %q, level %v", a.Status().Filter, level.Level())
		}
		says("changed=[]")
		put("", "[filter]\nservices = [\"web\"]\n")
		says("the old one stays in force")
		put("node = \"d9\"\npeers = [\"10.9.0.3\"]\n", "[kernel]\nlimit = 7\n[legacy]\ninterface = \"lo\"\n[control]\nmetrics = \"\"\n")
		says(`keys="[sync.node sync.peers kernel.limit legacy control.metrics]"`)
		if a.Status().Filter != "" || level.Level() != slog.LevelInfo {
			t.Errorf("filter %q, level %v", a.Status().Filter, level.Level())
		}
		must(t, os.WriteFile(key, []byte("BBECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
		put("", "")
		says("changed=[sync.key_file]")
	})
}

// A reload does what it can while the interfaces are gone.
func TestReloadWithoutInterfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, peertest.New(1), 1, newFakeKernel())
		path, key := configured(t)
		put := func(more string) {
			must(t, os.WriteFile(path, []byte("[sync]\ninterface = \"gone0\"\nkey_file = \""+key+"\"\n[legacy]\ninterface = \"gone1\"\n"+more), 0o600))
		}
		put("")
		_, err := Load(path)
		wantBad(t, err, `sync.interface = "gone0": no such interface`)
		s, err := loadAgain(path) // as it was read when they were there
		must(t, err)
		var out bytes.Buffer
		var level slog.LevelVar
		r := &reloader{Options: Options{Config: path, Level: &level}, log: slog.New(slog.NewTextHandler(&out, nil)), engine: a.Engine, now: s}
		put("[filter]\nservices = [\"10.9.0.100:80\"]\n[control]\ndebug = true\n")
		must(t, os.WriteFile(key, []byte("BBECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600))
		r.reload()
		if !strings.Contains(out.String(), `changed="[filter control.debug sync.key_file]"`) || strings.Contains(out.String(), "restarted") || level.Level() != slog.LevelDebug {
			t.Errorf("level %v; the log says\n%s", level.Level(), out.String())
		}
	})
}

// What systemd would say of the unit. It does not run here, but reads units.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze")
	}
	text, err := os.ReadFile("../../packaging/systemd/syncd.service")
	must(t, err)
	dir := t.TempDir()
	unit := filepath.Join(dir, "syncd.service")
	bin := filepath.Join(dir, "syncd")
	must(t, os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755))
	must(t, os.WriteFile(unit, bytes.ReplaceAll(text, []byte("/usr/sbin/syncd"), []byte(bin)), 0o644))
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// Its exposure, 0 to 10 in tenths; sshd's is 96.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", unit).CombinedOutput()
	if err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}
