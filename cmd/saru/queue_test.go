package main

import (
	"bytes"
	"errors"
	"os"
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
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		l.must(os.WriteFile(n.conf, bytes.Replace(b, []byte("[share]"), []byte("[share]\nbackend = \"nfqueue\""), 1), 0o600))
		n.start()
	}
	l.until("three share", l.shared(3))
	stop := l.traffic()
	defer stop()
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	mark := time.Now()
	time.Sleep(time.Second)
	l.report("steady", mark)
	if s := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)); s.Lost > s.Sent/20 || len(s.By) != 3 {
		t.Errorf("steady state loses %d of %d datagrams, accepted by %v", s.Lost, s.Sent, s.By)
	}

	mark = time.Now()
	d3.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	l.report("SIGSTOP", mark)
	if by := l.seen.Between(mark.Add(time.Second), time.Now()).By; by["d3"] > 0 || by["d1"] == 0 || by["d2"] == 0 {
		t.Errorf("a second after d3 was stopped datagrams are accepted by %v", by)
	}
	mark = time.Now()
	d3.signal(syscall.SIGCONT)
	l.until("back after SIGCONT", l.shared(3))
	l.report("SIGCONT", mark)

	mark = time.Now()
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("taken over after kill -9", l.shared(2))
	l.report("kill -9", mark)
	mark = time.Now()
	d2.start()
	l.until("back after a restart", l.shared(3))
	l.report("restart", mark)

	st, err := d1.status()
	if f := st.Filter; err != nil || f.Backend != "nfqueue" || f.Accepted == 0 || f.Dropped == 0 || !f.Intact {
		t.Errorf("status: %+v, %v", f, err)
	}
	mark = time.Now()
	d1.signal(syscall.SIGTERM)
	if code := d1.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.until("given away by SIGTERM", l.shared(2))
	l.report("SIGTERM of the master", mark)
	l.clean(d1)
	stop()
	l.neverTwice()
}
