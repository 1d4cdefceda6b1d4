package main

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"saru/partition/nft"
)

// Directors that judge in user space share as others do: none accepts a
// datagram that another accepts, a stopped one none at all, and what a killed
// one had is taken over.
func TestQueues(t *testing.T) {
	if err := nft.ProbeQueues(); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	}
	l := newLab(t, 3, "")
	l.edit("[share]", "[share]\nbackend = \"nfqueue\"")
	l.start()
	stop := l.traffic()
	defer stop()
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	mark := time.Now()
	time.Sleep(time.Second)
	l.report("steady", mark)
	if s := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)); s.Lost > s.Sent/20 || len(s.By) != 3 {
		t.Errorf("steady state loses %d of %d datagrams, accepted by %v", s.Lost, s.Sent, s.By)
	}

	l.survives("SIGSTOP", func() { d3.signal(syscall.SIGSTOP) }, "SIGCONT", func() { d3.signal(syscall.SIGCONT) })
	l.survives("SIGKILL", d2.kill, "restart", d2.start)
	st, err := d1.status()
	if f := st.Filter; err != nil || f.Backend != "nfqueue" || f.Accepted == 0 || f.Dropped == 0 || !f.Intact {
		t.Errorf("status: %+v, %v", f, err)
	}
	l.moves("SIGTERM of the master", func() { l.leave(d1) }, "start", d1.start)
	stop()
	l.neverTwice()
}
