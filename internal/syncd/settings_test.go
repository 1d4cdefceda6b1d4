package syncd

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
	"saru/syncproto/legacy"
)

// wantBad checks that err is bad input on one line that says text.
func wantBad(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want one line of bad input that says %q", err, text)
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	open := filepath.Join(dir, "open")
	bad := filepath.Join(dir, "bad")
	for path, mode := range map[string]os.FileMode{key: 0o600, open: 0o644} {
		must(t, os.WriteFile(path, []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), mode))
	}
	must(t, os.WriteFile(bad, []byte("secret\n"), 0o600))
	good := "[sync]\ninterface = \"lo\"\nkey_file = \"" + key + "\"\n"

	for _, c := range []struct{ name, text, want string }{
		{"unknown key", good + "[kernel]\nsuorce = \"auto\"", `syncd.toml:5: unknown key "kernel.suorce"`},
		{"wrong type", good + "[control]\nsocket = 7", "syncd.toml:5:10"},
		{"no interface", "[sync]\nkey_file = \"" + key + "\"", "sync.interface is not set"},
		{"unknown interface", "[sync]\ninterface = \"nope0\"", `sync.interface = "nope0": no such interface; there are`},
		{"unicast group", good + "group = \"10.0.0.1:8849\"", `sync.group = "10.0.0.1:8849": must be a multicast address`},
		{"group without port", good + "group = \"239.192.0.81\"", "sync.group"},
		{"peer by name", good + "peers = [\"d2\"]", `sync.peers: "d2"`},
		{"peer twice", good + "peers = [\"10.9.0.3\", \"10.9.0.3:8849\"]", `sync.peers names "10.9.0.3:8849" twice`},
		{"relative socket", good + "[control]\nsocket = \"syncd.sock\"", `control.socket = "syncd.sock": use an absolute path`},
		{"relative socket of saru", good + "[control]\nsaru = \"saru.sock\"", `control.saru = "saru.sock": use an absolute path`},
		{"a number for a duration", good + "[kernel]\ndefer = 20", `kernel.defer = "20ns": must be 1ms to 200ms`},
		{"node with a space", good + "node = \"d 1\"", `sync.node = "d 1"`},
		{"another source", good + "[kernel]\nsource = \"ebpf\"", `kernel.source = "ebpf": must be "auto", "module" or "daemon"`},
		{"limit", good + "[kernel]\nlimit = 0", "kernel.limit = 0"},
		{"filter", good + "[filter]\nservices = [\"web\"]", `filter.services: "web": must be such as`},
		{"filter's exceptions", good + "[filter]\nexcept = [\"fwmark 0\"]", `filter.except: "fwmark 0": must be such as`},
		{"legacy interface", good + "[legacy]\ninterface = \"nope0\"", `legacy.interface = "nope0": no such interface; there are`},
		{"legacy group", good + "[legacy]\ngroup = \"10.0.0.1:8848\"", `legacy.group = "10.0.0.1:8848": must be a multicast address with a port`},
		{"legacy group with a zone", good + "[legacy]\ngroup = \"[ff02::81%lo]:8848\"", "must be a multicast address with a port"},
		{"legacy group taken", good + "[legacy]\ninterface = \"lo\"\ngroup = \"239.192.0.81:8849\"", "is sync.group too"},
		{"legacy ports", good + "[legacy]\nports = 65", "legacy.ports = 65: must be 1 to 64"},
		{"legacy sync ID", good + "[legacy]\nsyncid = 256", "legacy.syncid = 256: must be 0 to 255"},
		{"legacy version", good + "[legacy]\nversion = 2", "legacy.version = 2: must be 1, or 0"},
		{"legacy flood", good + "[legacy]\nresend = \"1s\"", `legacy.resend = "1s": must be at least "10s"`},
		{"public metrics", good + "[control]\nmetrics = \"0.0.0.0:9647\"", "must be a loopback address"},
		{"no key file", "[sync]\ninterface = \"lo\"\nkey_file = \"" + dir + "/none\"", "no such file"},
		{"open key file", strings.Replace(good, key, open, 1), "chmod 600"},
		{"bad key file", strings.Replace(good, key, bad, 1), "line 1 is not a base64 key"},
	} {
		path := filepath.Join(dir, "syncd.toml")
		must(t, os.WriteFile(path, []byte(c.text), 0o600))
		_, err := Load(path)
		t.Run(c.name, func(t *testing.T) { wantBad(t, err, c.want) })
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error quotes the key file", c.name)
		}
	}
	path := filepath.Join(dir, "syncd.toml")
	must(t, os.WriteFile(path, []byte(good+"peers = [\"10.9.0.3\", \"10.9.0.4:9000\"]\n[filter]\n[control]\nmetrics = \"\"\n"), 0o600))
	s, err := Load(path)
	must(t, err)
	if len(s.UDP.Peers) != 2 || s.UDP.Peers[0].String() != "10.9.0.3:8849" || s.UDP.Peers[1].String() != "10.9.0.4:9000" || s.Node == "" || s.Metrics != "" {
		t.Errorf("%+v", s)
	}
	if s.Legacy != nil {
		t.Errorf("the legacy protocol, which has no key, is on: %+v", s.Legacy)
	}
	for group, want := range map[string]netip.AddrPort{"": legacy.DefaultGroup, "group = \"[ff02::81]:8848\"\n": legacy.ExampleGroup6} {
		must(t, os.WriteFile(path, []byte(good+"[legacy]\ninterface = \"lo\"\nsyncid = 7\n"+group), 0o600))
		s, err = Load(path)
		must(t, err)
		if want := (LegacySettings{"lo", want, 1, 7, 1, time.Minute}); s.Legacy == nil || *s.Legacy != want {
			t.Errorf("legacy %+v, want %+v", s.Legacy, want)
		}
	}
	_, err = Load(filepath.Join(dir, "nowhere.toml"))
	wantBad(t, err, "--config")
}

// The reference file has every key, each with its default.
func TestReferenceFile(t *testing.T) {
	const name = "../../packaging/syncd.toml"
	var f File
	must(t, config.Load(name, &f))
	want := DefaultFile()
	want.Sync.Peers, want.Filter.Services, want.Filter.Except = []string{}, []string{}, []string{}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("%s says\n%+v, the defaults are\n%+v", name, f, want)
	}
	configtest.SameKeys(t, name, want)
}
