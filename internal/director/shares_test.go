package director

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/config"
	"saru/partition"
)

const twoShares = `
[cluster]
bind = "127.0.0.2:7946"
join = ["127.0.0.3"]
key_file = "KEY"
[[share]]
id = 9
sense = "src-addr"
[[share]]
id = 4
`

func TestSeveralShares(t *testing.T) {
	s, err := load(t, twoShares)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != 4 || s.Sense.String() != "src-port" || s.Bind.String() != "127.0.0.2:7946" || s.tableName() != "saru" || len(s.Others) != 1 {
		t.Fatalf("the first is %+v", s)
	}
	o := s.Others[0]
	if o.ID != 9 || o.Sense.String() != "src-addr" || o.Buckets != 256 || o.tableName() != "saru-9" {
		t.Errorf("the second is %+v", o)
	}
	if o.Bind.String() != "127.0.0.2:7948" || o.Join[0].String() != "127.0.0.3:7948" || o.Metrics != "127.0.0.1:9648" || o.Socket != s.Socket+".9" {
		t.Errorf("it is at %v, %v, %s, %s", o.Bind, o.Join, o.Metrics, o.Socket)
	}
	if o.Seed != s.Seed || o.Shape() == s.Shape() {
		t.Error("the seeds differ, or the shapes do not")
	}
	if s.pick(9) != o || s.pick(4) != s || s.pick(1) != nil {
		t.Error("picked the wrong share")
	}
}

func TestNoShares(t *testing.T) {
	if _, err := load(t, "share = []\n"); config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "share = []") {
		t.Errorf("an empty list: %v", err)
	}
}

// Real servers of two shares must be told apart.
func TestInsidesOfShares(t *testing.T) {
	share := func(id int, vip, gateway string, last byte, networks ...string) *Settings {
		s := &Settings{ID: id, VIPs: partition.Hosts(netip.MustParseAddr(vip)), MAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(id)}}
		if gateway != "" {
			s.Inside = &Inside{Interface: "eth1", Address: netip.MustParseAddr(gateway), MAC: net.HardwareAddr{2, 0, 0, 0, 2, last}}
			for _, n := range networks {
				s.Inside.Networks = append(s.Inside.Networks, netip.MustParsePrefix(n))
			}
		}
		return s
	}
	first := share(1, "10.9.0.100", "192.168.6.1", 1, "192.168.6.0/24")
	for name, c := range map[string]struct {
		other *Settings
		says  string
	}{
		"another farm":       {share(2, "10.9.0.101", "192.168.7.1", 2, "192.168.7.0/24"), ""},
		"no farm":            {share(2, "10.9.0.101", "", 0), ""},
		"one network":        {share(2, "10.9.0.101", "192.168.6.2", 2, "192.168.6.128/25"), "overlap"},
		"one gateway":        {share(2, "10.9.0.101", "192.168.6.1", 2, "192.168.7.0/24"), "one gateway"},
		"one MAC":            {share(2, "10.9.0.101", "192.168.7.1", 1, "192.168.7.0/24"), "one gateway"},
		"a farm of VIPs":     {share(2, "192.168.6.9", "", 0), "192.168.6.9"},
		"outside and inside": {func() *Settings { s := share(2, "10.9.0.101", "", 0); s.MAC = first.Inside.MAC; return s }(), "share.mac"},
	} {
		err := apart(first, c.other)
		if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestSharesThatAreNotApart(t *testing.T) {
	for change, says := range map[string]string{
		"id = 9\nsense = \"src-addr\"": "id = 4",
		"id = 4":                       "idd = 4",
		"bind = \"127.0.0.2:7946\"":    "bind = \"127.0.0.2:65534\"",
	} {
		_, err := load(t, strings.Replace(twoShares, change, says, 1))
		if err == nil || config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", says, err)
		}
	}
	path := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(path, []byte("[[share"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(path); config.ExitStatus(err) != config.BadInputStatus {
		t.Errorf("%v", err)
	}
}
