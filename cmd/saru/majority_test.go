package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Two directors and a witness: a director that reaches a majority has all, one
// that does not has nothing, and a split ends without a second acceptor.
func TestMajority(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, w := l.nodes[0], l.nodes[1], l.nodes[2]
	has := func(n1, n2 int) func(map[string]int) bool {
		return func(open map[string]int) bool { return open["d1"] == n1 && open["d2"] == n2 }
	}
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		quorum := "quorum = \"majority\"\nvoters = [\"d1\", \"d2\", \"d3\"]\n"
		text := strings.Replace(string(b), "[share]", quorum+"[share]", 1)
		if n == w {
			before, _, _ := strings.Cut(text, "[share]")
			_, after, _ := strings.Cut(text, "[timing]")
			text = before + "role = \"witness\"\n[timing]" + after
		}
		l.must(os.WriteFile(n.conf, []byte(text), 0o600))
	}
	d1.start()
	time.Sleep(2 * time.Second)
	if st, err := d1.status(); err != nil || st.Share.Buckets != 0 || st.Quorum.Need != 2 || st.Quorum.Have != 1 {
		t.Errorf("one voter of three: %+v, %v; want no bucket", st, err)
	}
	w.start()
	l.until("director and witness", has(256, 0))
	d2.start()
	l.until("two share", has(128, 128))
	out, err := w.saru("status")
	l.must(err)
	t.Logf("the witness's status:\n%s", out)
	stop := l.traffic()
	defer stop()

	mark := time.Now()
	d2.setLink(false)
	l.until("who reaches the witness has all", has(256, 0))
	l.report("split, with the witness", mark)
	mark = time.Now()
	d2.setLink(true)
	l.until("two share again", has(128, 128))
	l.report("healed", mark)

	w.signal(syscall.SIGKILL)
	w.wait()
	time.Sleep(time.Second)
	if st, err := d1.status(); err != nil || st.Share.Buckets != 128 {
		t.Errorf("two of three voters left: %+v, %v; want the share as it was", st, err)
	}
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("one voter of three has nothing", has(0, 0))
	w.start()
	l.until("the witness is back", has(256, 0))
	stop()
	l.neverTwice()
}
