package lan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A strict reverse path filter is loose while the LAN is open, also when the
// host makes it strict again; one that is off, or loose, is not touched.
func TestReversePathFilter(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		for _, c := range []struct{ all, in, open string }{
			{"0", "1", "2"}, {"1", "0", "2"}, {"1", "1", "2"}, {"0", "0", "0"}, {"2", "1", "1"}, {"1", "2", "2"},
		} {
			all, in := conf("all", "rp_filter"), conf("eth0", "rp_filter")
			must(t, os.WriteFile(path(all), []byte(c.all), 0))
			must(t, os.WriteFile(path(in), []byte(c.in), 0))
			cfg := config()
			cfg.State = filepath.Join(t.TempDir(), "lan.json")
			l, err := Open(cfg)
			must(t, err)
			if got, err := readSysctl(in); err != nil || got != c.open {
				t.Errorf("all %s, eth0 %s: %s while it is open, want %s (%v)", c.all, c.in, got, c.open, err)
			}
			changed, err := l.keepSettings()
			if must(t, err); len(changed) > 0 {
				t.Errorf("all %s, eth0 %s: put right %v", c.all, c.in, changed)
			}
			if c.open == "2" && c.in != "2" {
				must(t, os.WriteFile(path(in), []byte("1"), 0))
				changed, err := l.keepSettings()
				if must(t, err); len(changed) != 1 || !strings.Contains(changed[0], "net.ipv4.conf.eth0.rp_filter was strict") {
					t.Errorf("all %s, eth0 %s: put right %v", c.all, c.in, changed)
				}
			}
			must(t, l.Close())
			if got, err := readSysctl(in); err != nil || got != c.in {
				t.Errorf("all %s, eth0 %s: left %s (%v)", c.all, c.in, got, err)
			}
		}
	})
}

// Where real servers and clients are on one LAN nobody is told of a shorter way
// past the director.
func TestNoRedirects(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		keys := []string{conf("all", "send_redirects"), conf("eth0", "send_redirects")}
		for _, key := range keys {
			must(t, os.WriteFile(path(key), []byte("1"), 0))
		}
		want := func(what, value string) {
			t.Helper()
			for _, key := range keys {
				if got, err := readSysctl(key); err != nil || got != value {
					t.Errorf("%s: %s is %s, want %s (%v)", what, key, got, value, err)
				}
			}
		}
		cfg := config()
		for _, cfg.NoRedirects = range []bool{false, true} {
			l, err := Open(cfg)
			must(t, err)
			want("open", map[bool]string{false: "1", true: "0"}[cfg.NoRedirects])
			must(t, l.Close())
			want("closed", "1")
		}
	})
}
