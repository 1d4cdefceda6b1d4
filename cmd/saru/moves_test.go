package main

import (
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
