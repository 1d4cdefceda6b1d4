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
		Buckets   int      `toml:"buckets"`
		MAC       string   `toml:"mac"`
		Addresses []string `toml:"addresses"`
		Debug     bool     `toml:"debug"`
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
		{"wrong type", "[share]\nbuckets = \"many\"\n", []string{":2:", `"share.buckets"`, "type string is there; write a whole number"}},
		{"no list", "[share]\naddresses = \"10.9.0.100\"\n", []string{":2:", "string", "write a list, in brackets"}},
		{"no string", "[share]\nmac = 5\n", []string{"integer", "write a string, in quotes"}},
		{"no switch", "[share]\ndebug = \"yes\"\n", []string{"string", "write true or false"}},
		{"a switch for a duration", "[timing]\nlease = [300]\n", []string{":2:", `"timing.lease"`, "array", `write a duration, such as "300ms"`}},
		{"no section", "timing = 300\n", []string{":1:", `"timing"`, "integer", "write a section"}},
		{"a section for a number", "[share.buckets]\nx = 1\n", []string{`"share.buckets`, "table", "write a whole number"}},
		{"a number that is too large", "[share]\nbuckets = 99999999999999999999\n", []string{":2:", "too large"}},
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

// Nothing of how a file is read in Go is in a message.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none.toml")} {
		err := Load(path, new(sample))
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), " toml: ") || ExitStatus(err) != BadInputStatus {
			t.Errorf("Load(%s): %v", path, err)
		}
	}
}

func TestName(t *testing.T) {
	for name, good := range map[string]bool{"d1": true, "director-1.example.org": true, "": false, "a b": false, "a\nb": false, "é": false, "12345678": true, "123456789012345678901234567890123": false} {
		if err := Name("cluster.node", name, 32); err == nil != good {
			t.Errorf("Name(%q): %v", name, err)
		}
	}
}

func TestSocketPath(t *testing.T) {
	for path, good := range map[string]bool{"/run/saru/saru.sock": true, "": false, "saru.sock": false, "/" + strings.Repeat("x", 120): false} {
		if err := SocketPath("control.socket", path); err == nil != good {
			t.Errorf("SocketPath(%q): %v", path, err)
		}
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
