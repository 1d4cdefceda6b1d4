package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "PRIVILEGE_TEST_INSIDE"

// The test is about a whole process, so it has one of its own.
func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(m.Run())
	}
	if err := report(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func report() error {
	go func() { select {} }() // another thread or two
	if err := Keep(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW); err != nil {
		return err
	}
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				fmt.Print(line)
			}
		}
	}
	out, err := exec.Command("grep", "CapEff", "/proc/self/status").Output()
	fmt.Printf("child %s", out)
	return err
}

func TestKeep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who has capabilities to give up")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), ErrNotSupported.Error()) {
		t.Skip(ErrNotSupported)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) || err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000003000", "CapEff": "0000000000003000", "CapBnd": "0000000000003000",
		"CapAmb": "0000000000000000", "NoNewPrivs": "1", "child CapEff": "0000000000003000",
	}
	seen := map[string]int{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(line, ":")
		if got := strings.TrimSpace(value); got != want[name] {
			t.Errorf("%s is %s, want %s", name, got, want[name])
		}
		seen[name]++
	}
	if seen["CapEff"] < 2 || seen["child CapEff"] != 1 {
		t.Errorf("not told of several threads and a child: %s", out)
	}
}
