package nft_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"saru/partition/nft"
)

// attempt runs a command that may fail.
func (h *host) attempt(command string) (out string, err error) {
	err = h.try(func() error {
		args := strings.Fields(command)
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

// Each rule that drops what a share serves is named, and no other.
func TestObstacles(t *testing.T) {
	for what, c := range map[string]struct {
		rules string
		nat   bool
		says  []string
	}{
		"nothing":              {"", true, nil},
		"invalid":              {`table inet f { chain transit { type filter hook forward priority 0; ct state established accept; ct state invalid drop; }; }`, true, []string{"inet f, chain transit"}},
		"invalid and others":   {`table ip f { chain transit { type filter hook forward priority 0; ct state { invalid, untracked } counter drop; }; }`, true, []string{"ip f, chain transit"}},
		"a map":                {`table inet f { chain transit { type filter hook forward priority 0; ct state vmap { established : accept, related : accept, invalid : drop }; }; }`, true, []string{"inet f, chain transit"}},
		"jumped to":            {`table inet f { chain sub { ct state invalid reject; }; chain transit { type filter hook forward priority 0; jump sub; }; }`, true, []string{"chain sub"}},
		"accepts":              {`table inet f { chain transit { type filter hook forward priority 0; ct state invalid accept; ct state new drop; }; }`, true, nil},
		"synproxy":             {`table inet f { chain inward { type filter hook input priority 0; tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm; }; }`, false, []string{"chain inward"}},
		"without NAT":          {`table inet f { chain transit { type filter hook forward priority 0; policy drop; ct state invalid drop; }; }`, false, nil},
		"policies":             {`table inet f { chain inward { type filter hook input priority 0; policy drop; }; chain transit { type filter hook forward priority 0; policy drop; }; }`, true, []string{"chain inward", "chain transit"}},
		"the share's own":      {`table inet saru { chain transit { type filter hook forward priority 0; ct state invalid drop; }; }`, true, nil},
		"another's, elsewhere": {`table inet f { chain out { type filter hook output priority 0; ct state invalid drop; }; }`, true, nil},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t, "host")
			if c.rules != "" {
				path := filepath.Join(t.TempDir(), "rules")
				if err := os.WriteFile(path, []byte(c.rules), 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := h.attempt("nft -f " + path); err != nil && what == "synproxy" {
					t.Skip("this kernel has no synproxy: ", out)
				} else if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			h.do(func() error {
				got, err := nft.Obstacles("saru", c.nat)
				if len(got) != len(c.says) {
					t.Errorf("found %v, want %q", got, c.says)
					return err
				}
				for i, o := range got {
					if !strings.Contains(o.Where, c.says[i]) {
						t.Errorf("found %v, want %q", o, c.says[i])
					}
				}
				return err
			})
		})
	}
}
