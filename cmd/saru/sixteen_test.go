package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"saru/internal/director"
)

// As many directors as we are made for share the buckets evenly, from a cold
// start of all at once; five lose their power in the same moment and return;
// all but one leave. No datagram is ever accepted twice.
func TestSixteenDirectors(t *testing.T) {
	if emulated {
		t.Skip("one emulated machine cannot be sixteen")
	}
	const directors = 16
	l := newLab(t, directors, "")
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		// Two processors do the work of thirty-two.
		text := strings.Replace(string(b), fmt.Sprintf("lease = %q", pace.lease), fmt.Sprintf("lease = %q", 4*time.Second), 1)
		l.must(os.WriteFile(n.conf, []byte(text), 0o600))
		n.start()
	}
	evenly := func(k int) func(map[string]int) bool {
		return func(open map[string]int) bool {
			sum := 0
			for _, b := range open {
				if b < 256/k || b > 256/k+1 {
					return false
				}
				sum += b
			}
			return len(open) == k && sum == 256
		}
	}
	l.until("sixteen share", evenly(directors))
	out, err := l.nodes[7].saru("status")
	l.must(err)
	t.Logf("saru status:\n%s", out)
	stop := l.traffic()
	defer stop()

	told := func() (group, beats uint64) {
		st, err := l.nodes[7].status()
		l.must(err)
		at := slices.IndexFunc(st.Paths, func(p director.PathStatus) bool { return p.Name == "group" })
		return st.Paths[at].Sent, st.Engine.Heartbeat
	}
	group, beats := told()
	mark := time.Now()
	time.Sleep(time.Second)
	// With each heartbeat it also answers fifteen others.
	if g, b := told(); g-group > 2*(b-beats)+2 {
		t.Errorf("%d messages to the group beside %d heartbeats: what is for one director goes to all", g-group, b-beats)
	}
	if s := l.report("steady", mark); len(s.By) != directors {
		t.Errorf("datagrams are accepted by %v; want all %d", s.By, directors)
	}
	dead := l.nodes[:5]
	mark = time.Now()
	for _, n := range dead {
		n.setLink(false)
		n.signal(syscall.SIGKILL)
	}
	for _, n := range dead {
		n.wait()
	}
	l.until("eleven have all", evenly(directors-len(dead)))
	l.report("five lose their power", mark)
	mark = time.Now()
	for _, n := range dead {
		n.setLink(true)
		n.start()
	}
	l.until("sixteen share again", evenly(directors))
	l.report("they return", mark)
	mark = time.Now()
	for _, n := range l.nodes[1:] {
		n.signal(syscall.SIGTERM)
	}
	for _, n := range l.nodes[1:] {
		if code := n.wait(); code != 0 {
			t.Errorf("%s: exit status %d after SIGTERM", n.name, code)
		}
		l.clean(n)
	}
	l.until("the last one has all", evenly(1))
	l.report("fifteen leave at once", mark)
	stop()
	l.neverTwice()
}
