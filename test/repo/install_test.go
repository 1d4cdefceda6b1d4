package repo

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// stubs returns a directory with programs to be installed.
func stubs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"saru", "syncd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n# "+name+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// makeIn runs a target of the Makefile, and returns what it says.
func makeIn(t *testing.T, target string, vars ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"-s", "-C", root, target}, vars...)...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		// Of a make that runs this test, and of its caller.
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DESTDIR", "PREFIX", "SYSCONFDIR", "BIN"}, name)
	}), "PATH=/usr/sbin:/usr/bin:/sbin:/bin") // no Go: nothing is built
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tree returns the files below dir, and what is in them.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Everything that is shipped is installed, and what names a program names the
// one that was.
func TestInstall(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	for _, prefix := range []string{"/usr/local", "/usr"} {
		t.Run(prefix, func(t *testing.T) {
			dest := t.TempDir()
			vars := []string{"DESTDIR=" + dest, "PREFIX=" + prefix, "BIN=" + stubs(t)}
			mine := filepath.Join(dest, "etc/saru/saru.toml")
			for range 2 { // the second time it is an upgrade
				if out, err := makeIn(t, "install", vars...); err != nil {
					t.Fatalf("make install: %v: %s", err, out)
				}
				if err := os.WriteFile(mine, []byte("[cluster]\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			have := tree(t, dest)
			shippedAreThere(t, have, prefix)
			programsAreThere(t, dest, have)
			if want := prefix + "/lib/systemd/system/syncd.service"; !strings.Contains(have[want], "ExecStart="+prefix+"/sbin/syncd run") {
				t.Errorf("%s does not start %s/sbin/syncd:\n%s", want, prefix, have[want])
			}
			if out, err := makeIn(t, "uninstall", vars...); err != nil {
				t.Fatalf("make uninstall: %v: %s", err, out)
			}
			for path := range tree(t, dest) {
				if path != "/etc/saru/saru.toml" {
					t.Errorf("%s is left by make uninstall", path)
				}
			}
		})
	}
}

// shippedAreThere looks for all of packaging, by content.
func shippedAreThere(t *testing.T, have map[string]string, prefix string) {
	t.Helper()
	there := map[string]bool{}
	for _, text := range have {
		there[text] = true
	}
	shipped := tree(t, filepath.Join(root, "packaging"))
	if len(shipped) == 0 {
		t.Fatal("nothing is shipped")
	}
	for path, text := range shipped {
		text = strings.NewReplacer("/usr/sbin/saru", prefix+"/sbin/saru", "/usr/sbin/syncd", prefix+"/sbin/syncd",
			"/usr/share/doc/", prefix+"/share/doc/").Replace(text)
		if !there[text] {
			t.Errorf("packaging%s is not installed", path)
		}
	}
}

// programsAreThere follows what units and scripts name: programs and documents
// of ours.
func programsAreThere(t *testing.T, dest string, have map[string]string) {
	t.Helper()
	ours := regexp.MustCompile(`(?:/[a-z]+)+/(?:sbin/(?:saru|syncd)|share/doc/saru/[a-z]+\.md)\b`)
	found := 0
	for path, text := range have {
		if !strings.HasSuffix(path, ".service") && !strings.HasPrefix(path, "/etc/init.d/") {
			continue
		}
		for _, name := range ours.FindAllString(text, -1) {
			found++
			if _, ok := have[name]; !ok {
				t.Errorf("%s names %s, which was not installed", path, name)
			}
		}
		if st, err := os.Stat(dest + path); err != nil || (st.Mode()&0o111 != 0) != strings.HasPrefix(path, "/etc/init.d/") {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if found < 9 { // each of five names its program, and units a document
		t.Errorf("units and scripts name %d programs and documents", found)
	}
}

func TestInstallBeforeBuild(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	dest := t.TempDir()
	out, err := makeIn(t, "install", "DESTDIR="+dest, "BIN="+filepath.Join(dest, "none"))
	if err == nil || !strings.Contains(out, "make build") {
		t.Errorf("make install without programs: %v, %q; want it to say what to do", err, out)
	}
	if left := tree(t, dest); len(left) != 0 {
		t.Errorf("it installed %v", left)
	}
}
