package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	kernel "saru/test/lab"
)

// Bad input ends with status 2 and one line, and leaves the kernel alone.
func TestRefusals(t *testing.T) {
	l := newLab(t, 1, "")
	d := l.nodes[0]
	refused := func(what, says string) {
		t.Helper()
		out, err := d.saru("run", "--log_facility", "-")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, says) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %v, %q; want status 2 and one line with %q", what, err, out, says)
		}
	}
	good, err := os.ReadFile(d.conf)
	l.must(err)
	write := func(old, now string) {
		l.must(os.WriteFile(d.conf, bytes.Replace(good, []byte(old), []byte(now), 1), 0o600))
	}
	write(`interface = "eth0"`, `interface = "eth7"`)
	refused("an interface that is not there", `share.interface = "eth7"`)
	write(`target = "local"`, `target = "local"`+"\ncolour = 1")
	refused("an unknown key", `"share.colour"`)
	write(`target = "local"`, `target = "local"`)
	if kernel.HasIPVS() {
		write(`target = "local"`, `target = "ipvs"`)
		for _, name := range []string{"sloppy_tcp", "sloppy_sctp"} {
			d.run("sysctl", "-qw", "net.ipv4.vs."+name+"=1")
			refused("connections taken from the middle", "net.ipv4.vs."+name+" = 1")
			d.run("sysctl", "-qw", "net.ipv4.vs."+name+"=0")
		}
		write(`target = "local"`, `target = "local"`)
	}
	l.must(os.Chmod(filepath.Join(l.dir, "key"), 0o640))
	refused("an open key file", "chmod 600")
	if out, err := d.saru("check"); err == nil || !strings.Contains(out, "chmod 600") {
		t.Errorf("check: %v, %q", err, out)
	}
	l.must(os.Chmod(filepath.Join(l.dir, "key"), 0o600))
	l.clean(d)

	d.start()
	l.until("serves", l.shared(1))
	refused("a second saru", "another saru answers")
	write(d.name+".sock", "other.sock")
	refused("a second saru with another socket", "")
	write("", "")
	if st, err := d.status(); err != nil || st.Share.Buckets != 256 {
		t.Errorf("the first saru after a second was refused: %+v, %v", st, err)
	}
	if out, err := d.saru("check"); err != nil || !strings.Contains(out, "nftables       yes") {
		t.Errorf("check: %v, %q", err, out)
	}
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.clean(d)
}
