package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// While moves are frozen a newcomer gets nothing, and a failure still moves
// what it must.
func TestFreeze(t *testing.T) {
	l := newLab(t, 2, "")
	d1, d2 := l.nodes[0], l.nodes[1]
	d1.start()
	l.until("one serves", l.shared(1))
	if out, err := d1.saru("drain"); err == nil || !strings.Contains(out, "no other director is ready") {
		t.Errorf("drain without a taker: %v, %q", err, out)
	}
	if st, err := d1.status(); err != nil || st.Share.Buckets != 256 {
		t.Errorf("after a drain without a taker: %+v, %v; want all buckets here", st, err)
	}
	if out, err := d1.saru("undrain"); err != nil {
		t.Errorf("undrain: %v, %q", err, out)
	}
	if out, err := d1.saru("freeze"); err != nil {
		t.Errorf("freeze: %v, %q", err, out)
	}
	d2.start()
	l.until("the newcomer is ready and knows", func(map[string]int) bool {
		st, err := d2.status()
		return err == nil && st.State == "ready" && st.Frozen
	})
	time.Sleep(time.Second)
	if st, err := d2.status(); err != nil || st.Share.Buckets != 0 {
		t.Errorf("frozen: the newcomer has %+v, %v; want nothing", st, err)
	}
	if out, err := d2.saru("unfreeze"); err != nil {
		t.Errorf("unfreeze: %v, %q", err, out)
	}
	l.until("two share", l.shared(2))
	if out, err := d1.saru("freeze"); err != nil {
		t.Errorf("freeze: %v, %q", err, out)
	}
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("a failure moves the share", func(open map[string]int) bool { return open["d2"] == 256 })
}

// A weight changes at run time: by command, and by a reload, which also names
// what it cannot change.
func TestWeightAndReload(t *testing.T) {
	l := newLab(t, 2, "")
	d1, d2 := l.nodes[0], l.nodes[1]
	d1.start()
	d2.start()
	l.until("two share", l.shared(2))
	has := func(n1 int) func(map[string]int) bool {
		return func(open map[string]int) bool { return open["d1"] == n1 && open["d2"] == 256-n1 }
	}
	if out, err := d1.saru("weight", "300"); err != nil {
		t.Fatalf("weight: %v: %s", err, out)
	}
	l.until("d1 has three quarters", has(192))
	for _, bad := range []string{"0", "x", "100000000"} {
		var exit *exec.ExitError
		if out, err := d1.saru("weight", bad); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, bad) {
			t.Errorf("weight %s: %v: %s", bad, err, out)
		}
	}
	b, err := os.ReadFile(d2.conf)
	l.must(err)
	text := strings.Replace(string(b), "[share]", "weight = 900\nping = [\"10.9.0.2\"]\n[share]\nbuckets = 128", 1)
	l.must(os.WriteFile(d2.conf, []byte(text), 0o600))
	d2.signal(syscall.SIGHUP)
	l.until("d2 has three quarters", has(64))
	// One that is wrong changes nothing.
	l.must(os.WriteFile(d2.conf, []byte(text+"colour = 1\n"), 0o600))
	d2.signal(syscall.SIGHUP)
	l.until("the log says so", func(map[string]int) bool {
		log, err := os.ReadFile(d2.conf + ".log")
		return err == nil && strings.Contains(string(log), "the configuration was not reloaded")
	})
	l.must(os.WriteFile(d2.conf, b, 0o600))
	out, err := d2.saru("events")
	l.must(err)
	for _, want := range []string{
		"the weight of this node is 900", "cluster.ping is [10.9.0.2], was []", "share.buckets has changed from 256 to 128; restart saru for it",
		"the configuration was not reloaded: ", `unknown key "control.colour"`, "from d1 to d2: the weight of d2 is 900, was 100",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not among the events:\n%s", want, out)
		}
	}
}
