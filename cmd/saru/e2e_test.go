package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"saru/internal/cli"
)

// The tests run this binary as saru itself, in network namespaces joined by a
// bridge: d1 to d3 are directors that answer themselves, client sends.

const runMain = "SARU_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		os.Exit(mainWithoutLeaks())
	}
	os.Exit(m.Run())
}

// mainWithoutLeaks is main, and fails where main leaves a goroutine behind.
func mainWithoutLeaks() int {
	status := cli.Main(command())
	// signal.Notify's goroutine lives as long as the process.
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, "saru leaves goroutines:", err)
		return 1
	}
	return status
}

func TestThreeDirectors(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	d1.start()
	l.until("one serves", l.shared(1))
	stop := l.traffic()
	defer stop()
	d2.start()
	d3.start()
	l.until("three share", l.shared(3))
	out, err := d2.saru("status")
	l.must(err)
	t.Logf("saru status:\n%s", out)

	mark := time.Now()
	time.Sleep(time.Second)
	l.report("steady", mark)
	if s := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)); s.Lost > s.Sent/20 || len(s.By) != 3 {
		t.Errorf("steady state loses %d of %d datagrams, accepted by %v", s.Lost, s.Sent, s.By)
	}

	mark = time.Now()
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("taken over after kill -9", l.shared(2))
	l.report("kill -9", mark)
	out, err = d1.saru("events")
	l.must(err)
	if !strings.Contains(out, "from d2 to d1: d2 is unreachable") {
		t.Errorf("the events do not say why d2's share moved:\n%s", out)
	}

	mark = time.Now()
	d2.start()
	l.until("back after a restart", l.shared(3))
	l.report("restart and rejoin", mark)

	mark = time.Now()
	d1.signal(syscall.SIGTERM)
	if code := d1.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.until("given away by SIGTERM", l.shared(2))
	l.report("SIGTERM of the master", mark)
	l.clean(d1)

	mark = time.Now()
	d1.start()
	l.until("back again", l.shared(3))
	l.report("join", mark)

	mark = time.Now()
	d3.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	l.report("SIGSTOP", mark)
	mark = time.Now()
	time.Sleep(500 * time.Millisecond)
	if by := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)).By; by["d3"] > 0 {
		t.Errorf("a stopped director accepted %d datagrams 1.5 s later", by["d3"])
	}
	mark = time.Now()
	d3.signal(syscall.SIGCONT)
	l.until("back after SIGCONT", l.shared(3))
	l.report("SIGCONT", mark)

	mark = time.Now()
	if out, err := d3.saru("drain"); err != nil {
		t.Errorf("drain: %v: %s", err, out)
	}
	if st, err := d3.status(); err != nil || st.Share.Buckets != 0 {
		t.Errorf("drain returned while %d buckets were open here (%v)", st.Share.Buckets, err)
	}
	l.until("drained", l.shared(2))
	l.report("drain", mark)
	if _, err := d3.saru("undrain"); err != nil {
		t.Error(err)
	}
	l.until("undrained", l.shared(3))

	mark = time.Now()
	l.must(in(d2.ns, func() error { return exec.Command("nft", "flush", "ruleset").Run() }))
	time.Sleep(200 * time.Millisecond)
	l.until("open again after a flush", l.shared(3))
	l.report("nft flush ruleset", mark)

	mark = time.Now()
	d1.signal(syscall.SIGKILL)
	d2.signal(syscall.SIGKILL)
	d1.wait()
	d2.wait()
	l.until("the last one has all", l.shared(1))
	l.report("two killed at once", mark)
	stop()
	l.neverTwice()
}
