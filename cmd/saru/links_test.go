package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Of two directors, the one without carrier stops and the other has all; with
// a ping node, so has the survivor of one that hears nothing.
func TestTwoDirectorsAndLinks(t *testing.T) {
	l := newLab(t, 2, "")
	d1 := l.nodes[0]
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		l.must(os.WriteFile(n.conf, bytes.Replace(b, []byte("[share]"), []byte("ping = [\"10.9.0.1\"]\n[share]"), 1), 0o600))
		n.start()
	}
	l.until("two share", l.shared(2))
	stop := l.traffic()
	defer stop()
	mark := time.Now()
	d1.setLink(false)
	l.until("the other has all", func(open map[string]int) bool { return open["d2"] == 256 && open["d1"] == 0 })
	l.report("cable pulled", mark)
	mark = time.Now()
	d1.setLink(true)
	l.until("two share again", l.shared(2))
	l.report("cable back", mark)

	// d1 sends and hears nothing.
	mark = time.Now()
	l.must(in(d1.ns, func() error {
		return exec.Command("nft", "add table netdev deaf; add chain netdev deaf in { type filter hook ingress device eth0 priority -500; policy drop; }").Run()
	}))
	l.until("the hearing one has all", func(open map[string]int) bool { return open["d2"] == 256 })
	l.report("deaf", mark)
	l.neverTwice()

	// It has concluded that it is alone. Until the first heartbeat after the
	// healing is acted on both accept, as PROTOCOL.md says of lan.
	mark = time.Now()
	l.must(in(d1.ns, func() error { return exec.Command("nft", "delete table netdev deaf").Run() }))
	time.Sleep(500 * time.Millisecond)
	l.until("two share once more", l.shared(2))
	l.report("hears again", mark)

	// d1 no longer reaches the ping node that d2 reaches.
	mark = time.Now()
	l.must(in(d1.ns, func() error {
		return exec.Command("nft", "add table inet blind; add chain inet blind in { type filter hook input priority -500; }; add rule inet blind in icmp type echo-reply drop").Run()
	}))
	l.until("who reaches more has all", func(open map[string]int) bool { return open["d2"] == 256 && open["d1"] == 0 })
	l.report("ping node out of reach", mark)
	stop()
	first, last, n := l.twice()
	t.Logf("%d datagrams were accepted twice at the healing, within %v", n, last.Sub(first))
	if n > 0 && last.Sub(first) > 500*time.Millisecond {
		t.Errorf("two acceptors for %v after the healing", last.Sub(first))
	}
}
