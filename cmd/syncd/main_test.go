package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/config"
	"saru/ipvs"
)

// runCommand executes the command line and returns what it printed.
func runCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadInputIsOneLineAndStatus2(t *testing.T) {
	dir := t.TempDir()
	unknown := write(t, filepath.Join(dir, "unknown.toml"), "[sync]\nifname = \"lo\"\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--no-such-flag"}, "no-such-flag"},
		{[]string{"start"}, `"start"`},
		{[]string{"status", "now"}, `"now"`},
		{[]string{"--config", dir + "/none.toml"}, "none.toml"},
		{[]string{"run", "--config", unknown}, `unknown key "sync.ifname"`},
		{[]string{"--log_facility", "local9", "--config", unknown}, "local9"},
		{[]string{"conns", "--proto", "ipx"}, `--proto "ipx" is no protocol; use tcp`},
		{[]string{"conns", "--client", "web"}, `--client "web" is no address; use 10.0.0.1`},
		{[]string{"conns", "--state", "OPEN"}, `--state "OPEN" is no state; use one of ASSURED, CLOSE`},
		{[]string{"conns", "--owner", "me"}, `--owner "me": use owned`},
		{[]string{"conns", "--limit", "-1"}, `"-1" for "--limit" flag: use a whole number from 0 on; see 'syncd conns --help'`},
		{[]string{"conns", "--limit", "4294967296"}, "use a smaller number"},
		{[]string{"conns", "--json=maybe"}, `"maybe" for "--json" flag: use true or false`},
		{[]string{"trace", "--path", "wire"}, `--path "wire": use some of`},
		{[]string{"run", "--keep", "this"}, `"this" is not a command or argument`},
	} {
		_, err := runCommand(t, c.args...)
		if err == nil || config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("syncd %s: %v; want one line of bad input that names %s", strings.Join(c.args, " "), err, c.want)
		}
	}
}

func TestKernelWithoutIPVS(t *testing.T) {
	if c, err := ipvs.Dial(); !errors.Is(err, ipvs.ErrNotSupported) {
		if err == nil {
			c.Close()
		}
		t.Skipf("this kernel has IPVS, or does not tell: %v", err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key"), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
	path := write(t, filepath.Join(dir, "syncd.toml"), `
[sync]
interface = "lo"
group     = "239.192.0.81:58849"
key_file  = "`+dir+`/key"
[control]
socket  = "`+dir+`/syncd.sock"
metrics = ""
`)
	_, err := runCommand(t, "run", "--config", path, "--log_facility", "-")
	if config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "no IPVS") {
		t.Errorf("got %v, want one line of bad input that says that there is no IPVS", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "syncd.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
}

func TestAskingNobody(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "syncd.toml"), "[control]\nsocket = \"/nonexistent/syncd.sock\"\n")
	for _, cmd := range []string{"status", "conns", "resync"} {
		_, err := runCommand(t, cmd, "--config", path)
		if config.ExitStatus(err) != 1 || !strings.Contains(err.Error(), "no daemon answers on /nonexistent/syncd.sock") {
			t.Errorf("%s: %v", cmd, err)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if out, err := runCommand(t, args...); err != nil || !strings.Contains(out, version) {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestConnsAsJSONIsAnArray(t *testing.T) {
	for lines, want := range map[string]string{
		"":                    "[]\n",
		"{\"a\":1}\n{}\n":     "[\n  {\"a\":1},\n  {}\n]\n",
		"{\"proto\":\"x\"}\n": "[\n  {\"proto\":\"x\"}\n]\n",
	} {
		var b strings.Builder
		if err := printConnsJSON(&b, strings.NewReader(lines)); err != nil || b.String() != want {
			t.Errorf("%q: %q, %v; want %q", lines, b.String(), err, want)
		}
	}
}
