package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Timing struct {
		Lease Duration `toml:"lease"`
	} `toml:"timing"`
	Share struct {
		Buckets int `toml:"buckets"`
	} `toml:"share"`
}

func TestLoad(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // parts of the error, none for success
	}{
		{"good", "[timing]\nlease = \"150ms\"\n", nil},
		{"unknown key", "[timing]\nlease = \"1s\"\nleese = \"1s\"\n", []string{":3:", `"timing.leese"`, "unknown key"}},
		{"unknown table", "[tming]\nlease = \"1s\"\n", []string{":1:", `"tming"`}},
		{"wrong type", "[share]\nbuckets = \"many\"\n", []string{":2:", "buckets"}},
		{"not a duration", "[timing]\nlease = \"300\"\n", []string{`"300" is not a duration`}},
		{"no toml", "lease: 300ms\n", []string{":1:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "saru.toml")
			if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			c := sample{}
			c.Timing.Lease = Duration(time.Second)
			err := Load(path, &c)
			if len(tc.want) == 0 {
				if err != nil || c.Timing.Lease.Std() != 150*time.Millisecond {
					t.Fatalf("lease = %v, %v", c.Timing.Lease.Std(), err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range append(tc.want, path) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not contain %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
			if ExitStatus(fmt.Errorf("start: %w", err)) != 2 {
				t.Errorf("exit status %d, want 2", ExitStatus(err))
			}
		})
	}
}

func TestExitStatus(t *testing.T) {
	for want, err := range map[int]error{0: nil, 1: os.ErrClosed, 2: Bad("x")} {
		if got := ExitStatus(err); got != want {
			t.Errorf("ExitStatus(%v) = %d, want %d", err, got, want)
		}
	}
}

func TestInterfaceNamesTheOthers(t *testing.T) {
	_, err := Interface("share.interface", "eth77")
	if err == nil || !strings.Contains(err.Error(), "lo") || !strings.Contains(err.Error(), `share.interface = "eth77"`) {
		t.Errorf("Interface: %v, want the key, the value and the names there are", err)
	}
}
