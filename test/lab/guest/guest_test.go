package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFramesComeBack(t *testing.T) {
	var buf bytes.Buffer
	w := &frameWriter{w: &buf}
	long := strings.Repeat("x", maxFrame+10)
	if n, err := (stream{frameStdout, w}).Write([]byte(long)); n != len(long) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := w.write(frameExit, nil); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for {
		kind, payload, err := readFrame(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if kind == frameExit {
			break
		}
		got.Write(payload)
	}
	if got.String() != long {
		t.Errorf("%d bytes came back changed as %d", len(long), got.Len())
	}
	if _, _, err := readFrame(&buf); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("1\x00\x00\x00\x02hi"))
	f.Add([]byte("x\xff\xff\xff\xff"))
	f.Add([]byte("1\x00\x00\x00\x09short"))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, payload, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := (&frameWriter{w: &out}).write(kind, payload); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, out.Bytes()) {
			t.Errorf("%q became %q", data, out.Bytes())
		}
	})
}

func TestArchiveGolden(t *testing.T) {
	var a archive
	a.dir("d")
	a.file("f", 0o755, []byte("hello"))
	a.charDevice("n", 1, 3)
	want := "07070100000001000041ed0000000000000000000000010000000000000000" +
		"0000000000000000000000000000000000000002" + "00000000" + "d\x00" +
		"07070100000002000081ed0000000000000000000000010000000000000005" +
		"0000000000000000000000000000000000000002" + "00000000" + "f\x00" + "hello\x00\x00\x00" +
		"0707010000000300002180000000000000000000000001" + "0000000000000000" +
		"0000000000000000" + "0000000100000003" + "00000002" + "00000000" + "n\x00" +
		"0707010000000000000000000000000000000000000001" + "0000000000000000" +
		"0000000000000000" + "0000000000000000" + "0000000b" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if got := string(a.finish()); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestModuleOrder(t *testing.T) {
	dep := []byte("kernel/a/top.ko.xz: kernel/b/mid-dle.ko.xz kernel/c/base.ko.xz\n" +
		"kernel/b/mid-dle.ko.xz: kernel/c/base.ko.xz\n" +
		"kernel/c/base.ko.xz:\n")
	builtin := []byte("kernel/d/inside.ko\n")
	got, err := moduleOrder(dep, builtin, []string{"top", "mid_dle", "inside"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kernel/c/base.ko.xz", "kernel/b/mid-dle.ko.xz", "kernel/a/top.ko.xz"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := moduleOrder(dep, builtin, []string{"none"}); err == nil {
		t.Error("a module that is nowhere was taken")
	}
}

func TestParseResults(t *testing.T) {
	got := parseResults(`=== RUN   TestA
=== RUN   TestA/sub
--- PASS: TestA (0.00s)
    --- PASS: TestA/sub (0.00s)
=== RUN   TestB
    b_test.go:1: no such feature
--- SKIP: TestB (0.00s)
=== RUN   TestC
panic: boom
`)
	want := map[string]string{"TestA": "PASS", "TestB": "SKIP", "TestC": "FAIL"}
	if len(got) != len(want) {
		t.Fatalf("results %+v", got)
	}
	for _, r := range got {
		if want[r.name] != r.status {
			t.Errorf("%s: %s, want %s", r.name, r.status, want[r.name])
		}
	}
	if !strings.Contains(got[1].text, "no such feature") || !strings.Contains(got[2].text, "boom") {
		t.Errorf("the reasons are lost: %+v", got)
	}
}

func TestBadInput(t *testing.T) {
	if _, err := Run(t.Context(), Config{}, "ipvsadm"); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("a relative path: %v", err)
	}
	if _, err := Fetch(t.Context(), "2.4"); err == nil || !strings.Contains(err.Error(), "6.12") {
		t.Errorf("an unknown kernel: %v, want the known ones named", err)
	}
}

// TestRun boots three guests one after another.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests, which takes minutes")
	}
	if os.Geteuid() != 0 {
		t.Skip("sharing the whole file system needs root")
	}
	t.Run("output and status", func(t *testing.T) {
		out := t.TempDir()
		var stdout, stderr bytes.Buffer
		c := Config{Out: out, Stdout: &stdout, Stderr: &stderr, Env: []string{"WHO=world"}}
		code, err := Run(t.Context(), c, "/bin/sh", "-c",
			"echo hello $WHO; echo oops >&2; uname -r >$SARU_LAB_OUT/release; test -c /dev/net/tun || exit 8; sleep 1000 & exit 7")
		if err != nil || code != 7 {
			t.Fatalf("exit %d, %v; want 7", code, err)
		}
		if stdout.String() != "hello world\n" || stderr.String() != "oops\n" {
			t.Errorf("output %q and %q", &stdout, &stderr)
		}
		if release, err := os.ReadFile(filepath.Join(out, "release")); err != nil || !bytes.HasPrefix(release, []byte("6.1.")) {
			t.Errorf("the guest left %q, %v", release, err)
		}
	})
	t.Run("panic", func(t *testing.T) {
		_, err := Run(t.Context(), Config{}, "/bin/sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
		var failed *Error
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), "Kernel panic") {
			t.Errorf("got %v, want a guest failure with the panic", err)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var stdout bytes.Buffer
		c := Config{Timeout: 5 * time.Minute, Stdout: io.MultiWriter(&stdout, whenWritten(cancel))}
		_, err := Run(ctx, c, "/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want canceled", err)
		}
		if stdout.String() != "up\nbye\n" {
			t.Errorf("output %q, want the program to have ended by itself", &stdout)
		}
	})
}

// whenWritten calls itself at each write.
type whenWritten func()

func (f whenWritten) Write(p []byte) (int, error) { f(); return len(p), nil }

// TestAccelerator: an unknown way is the default, and the virtual clock is the
// clock of all of the guest's devices.
func TestAccelerator(t *testing.T) {
	for how, want := range map[string]string{
		"":       "-accel tcg,thread=multi,tb-size=512",
		"other":  "-accel tcg,thread=multi,tb-size=512",
		"single": "-accel tcg,thread=single,tb-size=512",
		"icount": "-accel tcg,thread=single,tb-size=512 -icount shift=0,sleep=off -rtc clock=vm",
	} {
		if got := strings.Join(accelerator(how), " "); got != want {
			t.Errorf("%q: %s, want %s", how, got, want)
		}
	}
}

func TestFaultOfADebugKernel(t *testing.T) {
	for line, bad := range map[string]bool{
		"[    1.2] e1000: link is up":                                               false,
		"[    9.1] WARNING: possible circular locking dependency detected":          true,
		"[    9.1] WARNING: suspicious RCU usage":                                   true,
		"[    9.1] BUG: KASAN: slab-use-after-free in expire+0x11/0x80":             true,
		"[    9.1] BUG: sleeping function called from invalid context at mm/slab.h": true,
		"[    9.1] ODEBUG: free active (active state 0) object: 00000000":           true,
		"[    9.1] INFO: task rmmod:71 blocked for more than 120 seconds.":          true,
	} {
		console := filepath.Join(t.TempDir(), "console")
		if err := os.WriteFile(console, []byte("Linux\r\n"+line+"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		m := &machine{Config: Config{Console: console}}
		if err := m.fault(); errors.Is(err, errFault) != bad {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestDebugKernelIsNotDownloaded(t *testing.T) {
	t.Setenv("SARU_LAB_CACHE", t.TempDir())
	_, err := Fetch(t.Context(), "6.12-debug")
	if err == nil || !strings.Contains(err.Error(), "test/lab/debug-kernel.sh 6.12") {
		t.Errorf("%v", err)
	}
}
