package director

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"saru/internal/config"
	"saru/internal/config/configtest"
	"saru/internal/seal"
	"saru/partition"
)

// full has every key of the contract, as far as this version does them.
const full = `
[cluster]
name     = "web"
node     = "d1"
bind     = "127.0.0.2:7946"
join     = ["127.0.0.3", "127.0.0.4:9000"]
key_file = "KEY"
role     = "director"
quorum   = "lan"
voters   = []
weight   = 50
ping     = ["10.9.0.254"]
[share]
id        = 1
addresses = []
interface = "eth0"
sense     = "src-port"
method    = "hash"
buckets   = 256
mac       = "02:00:5e:00:01:c9"
mode      = "flood"
backend   = "nftables"
target    = "local"
fragments = 1000
[timing]
lease = "60ms"
delay = "5s"
[control]
socket  = "/run/saru/saru.sock"
metrics = "127.0.0.1:9646"
syncd   = "/run/saru/syncd.sock"
`

func load(t *testing.T, text string) (*Settings, error) {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(seal.NewKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "saru.toml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "KEY", key)), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestFullConfiguration(t *testing.T) {
	s, err := load(t, full)
	if err != nil {
		t.Fatal(err)
	}
	if s.Node != "d1" || s.Weight != 50 || s.Lease != 60*time.Millisecond || s.Interval() != 10*time.Millisecond || s.Delay != 5*time.Second {
		t.Errorf("got %+v", s)
	}
	want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.3:7946"), netip.MustParseAddrPort("127.0.0.4:9000")}
	if len(s.Join) != 2 || s.Join[0] != want[0] || s.Join[1] != want[1] {
		t.Errorf("join is %v, want %v", s.Join, want)
	}
}

// Each is refused in one line that names the key, with exit status 2.
func TestBadConfiguration(t *testing.T) {
	for _, tc := range []struct{ old, new, says string }{
		{`role     = "director"`, `role = "witness"`, `cluster.role = "witness": quorum "lan" has no voters`},
		{`role     = "director"`, `role = "boss"`, `cluster.role = "boss"`},
		{`quorum   = "lan"`, `quorum = "most"`, `cluster.quorum = "most"`},
		{`quorum   = "lan"`, `quorum = "majority"`, `cluster.voters is not set`},
		{`voters   = []`, `voters = ["d1"]`, `quorum "lan" has no voters`},
		{"quorum   = \"lan\"\nvoters   = []", "quorum = \"majority\"\nvoters = [\"d1\", \"d1\"]", `names "d1" twice`},
		{"quorum   = \"lan\"\nvoters   = []", "quorum = \"majority\"\nvoters = [\"\"]", `cluster.voters`},
		{"role     = \"director\"\nquorum   = \"lan\"\nvoters   = []", "role = \"witness\"\nquorum = \"majority\"\nvoters = [\"d2\"]", `"d1", is not among them`},
		{`method    = "hash"`, `method = "random"`, `share.method = "random"`},
		{`mode      = "flood"`, `mode = "anycast"`, `share.mode`},
		{`backend   = "nftables"`, `backend = "iptables"`, `share.backend`},
		{`[timing]`, "[share.inside]\ninterface = \"eth1\"\n[timing]", `share.inside`},
		{`name     = "web"`, `name = ""`, `cluster.name`},
		{`bind     = "127.0.0.2:7946"`, `bind = "192.0.2.1"`, `cluster.bind`},
		{`bind     = "127.0.0.2:7946"`, `bind = "0.0.0.0"`, `cluster.bind`},
		{`bind     = "127.0.0.2:7946"`, `bind = "x"`, `cluster.bind`},
		{`bind     = "127.0.0.2:7946"`, ``, `cluster.bind`},
		{`"127.0.0.3"`, `"d2"`, `cluster.join`},
		{`"KEY"`, `"/nonexistent/key"`, `key_file`},
		{`key_file = "KEY"`, ``, `cluster.key_file`},
		{`weight   = 50`, `weight = 0`, `cluster.weight`},
		{`"10.9.0.254"`, `"gateway"`, `cluster.ping`},
		{`id        = 1`, `id = 256`, `share.id`},
		{`addresses = []`, `addresses = ["fe80::1"]`, `share.addresses`},
		{`addresses = []`, `addresses = ["10.9.0.100", "10.9.0.100"]`, `share.addresses`},
		{`addresses = []`, `addresses = ["10.9.0.100/24"]`, `use the network 10.9.0.0/24`},
		{`addresses = []`, `addresses = ["10.9.7.0/24", "10.9.7.9"]`, `overlap`},
		{`addresses = []`, `addresses = ["127.0.0.0/8"]`, `share.addresses`},
		{`addresses = []`, `addresses = ["::ffff:10.9.0.100"]`, `share.addresses`},
		{`addresses = []`, `addresses = ["2000::/3"]`, `too large`},
		{`addresses = []`, "addresses = [\"10.9.0.100\"]\ninterface = \"nope0\"\n#", `share.interface = "nope0"`},
		{`sense     = "src-port"`, `sense = "colour"`, `share.sense`},
		{`buckets   = 256`, `buckets = 100`, `share.buckets = 100`},
		{`fragments = 1000`, `fragments = 0`, `share.fragments`},
		{`target    = "local"`, `target = "moon"`, `share.target`},
		{`lease = "60ms"`, `lease = "59ms"`, `timing.lease`},
		{`lease = "60ms"`, `lease = "11s"`, `timing.lease`},
		{`lease = "60ms"`, `lease = "soon"`, `lease`},
		{`delay = "5s"`, `delay = "-1s"`, `timing.delay`},
		{`delay = "5s"`, `delay = 5`, `timing.delay = "5ns"`},
		{`delay = "5s"`, `delay = [5]`, `write a duration`},
		{`name     = "web"`, `name = "our web"`, `cluster.name = "our web": use 1 to 63 printable`},
		{`name     = "web"`, `name = 5`, `"cluster.name": a value of the type integer is there; write a string`},
		{`metrics = "127.0.0.1:9646"`, `metrics = "0.0.0.0:9646"`, `control.metrics`},
		{`socket  = "/run/saru/saru.sock"`, `socket = "saru.sock"`, `control.socket`},
		{`weight   = 50`, `wieght = 50`, `wieght`},
	} {
		t.Run(tc.new, func(t *testing.T) {
			text := strings.Replace(full, tc.old, tc.new, 1)
			if strings.Contains(tc.new, "nope0") {
				text = strings.Replace(text, `interface = "eth0"`+"\nsense", "sense", 1)
			}
			_, err := load(t, text)
			if err == nil {
				t.Fatal("accepted")
			}
			if config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("status %d: %v; want one line with %q", config.ExitStatus(err), err, tc.says)
			}
		})
	}
}

// What a witness does not use is checked all the same: it counts in buckets.
func TestBadWitness(t *testing.T) {
	text := strings.NewReplacer(`"director"`, `"witness"`, `"lan"`, `"majority"`, "voters   = []", `voters = ["d1"]`).Replace(full)
	if _, err := load(t, text); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"0", "-1", "100", "8192"} {
		_, err := load(t, strings.Replace(text, "buckets   = 256", "buckets = "+n, 1))
		if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "share.buckets = "+n) {
			t.Errorf("%s buckets: %v", n, err)
		}
	}
}

func TestNoConfigurationIsAClusterOfOne(t *testing.T) {
	if exists(DefaultConfigPath) {
		t.Skip("this machine has a configuration")
	}
	s, err := Load(DefaultConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.VIPs) != 0 || len(s.Join) != 0 || !s.Bind.Addr().IsLoopback() {
		t.Errorf("got %+v", s)
	}
	if _, err := Load("/nonexistent/saru.toml"); config.ExitStatus(err) != config.BadInputStatus {
		t.Errorf("a file that was named and is not there: %v", err)
	}
}

// What picks a bucket is secret, the same for all who have the key, and stays
// when the key is rotated under a line that says so.
func TestSeedIsOfTheKey(t *testing.T) {
	old, other := seal.NewKey(), seal.NewKey()
	seed := func(lines string) uint32 {
		t.Helper()
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
		f := DefaultFile()
		f.Cluster.KeyFile = path
		var s Settings
		if err := f.keys(&s); err != nil {
			t.Fatal(err)
		}
		return s.Seed
	}
	was := seed(old + "\n")
	if was == 0 || seed(old+"\n") != was || seed(old+"\n"+other+"\n") != was || seed(other+"\nseed "+old+"\n") != was {
		t.Error("the seed is not that of the key that says so")
	}
	if seed(other+"\n") == was {
		t.Error("two keys have one seed")
	}
}

// Directors that differ in what decides a packet must not share it.
func TestShape(t *testing.T) {
	base := func() *Settings {
		s, err := load(t, full)
		if err != nil {
			t.Fatal(err)
		}
		s.Seed = 1
		return s
	}
	a := base()
	a.VIPs = partition.Hosts(netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"))
	b := base()
	b.VIPs = []netip.Prefix{a.VIPs[1], a.VIPs[0]}
	b.Node, b.Weight, b.Lease = "d2", 7, time.Second
	if a.Shape() != b.Shape() {
		t.Error("the order of addresses, name, weight or lease changes the shape")
	}
	for what, change := range map[string]func(*Settings){
		"seed": func(s *Settings) { s.Seed++ }, "buckets": func(s *Settings) { s.Buckets *= 2 },
		"sense": func(s *Settings) { s.Sense++ }, "addresses": func(s *Settings) { s.VIPs = nil },
		"mac": func(s *Settings) { s.MAC = []byte{2, 0, 0, 0, 0, 1} }, "id": func(s *Settings) { s.ID++ },
	} {
		s := base()
		s.VIPs = a.VIPs
		if change(s); s.Shape() == a.Shape() {
			t.Errorf("another %s has the same shape", what)
		}
	}
}

// The reference file has every key, each with its default.
func TestReferenceFile(t *testing.T) {
	const name = "../../packaging/saru.toml"
	var f File
	if err := config.Load(name, &f); err != nil {
		t.Fatal(err)
	}
	want := DefaultFile()
	none := []string{}
	want.Cluster.Join, want.Cluster.Voters, want.Cluster.Ping, want.Share.Addresses = none, none, none, none
	if !reflect.DeepEqual(f, want) {
		t.Errorf("%s says\n%+v, the defaults are\n%+v", name, f, want)
	}
	configtest.SameKeys(t, name, want)
}
