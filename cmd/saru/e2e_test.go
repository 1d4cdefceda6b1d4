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
	// signal.Notify's goroutine lives as long as the process, and memberlist's
	// question to a member until nobody has answered it.
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode")); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, "saru leaves goroutines:", err)
		return 1
	}
	return status
}

// What a client meets over the life of a cluster: hundreds of flows send all
// the time, things are done to directors one after another, no datagram is ever
// accepted twice, and nobody waits for longer than the protocol says. (A split
// and its healing: TestSplitAndHeal.)
func TestThreeDirectors(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	d1.start()
	l.until("one serves", l.shared(1))
	stop := l.traffic()
	defer stop()
	mark := time.Now()
	d2.start()
	d3.start()
	l.until("three share", l.shared(3))
	l.seamless("two join", mark)
	out, err := d2.saru("status")
	l.must(err)
	t.Logf("saru status:\n%s", out)

	mark = time.Now()
	time.Sleep(time.Second)
	l.seamless("steady", mark)
	if s := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)); s.Lost > s.Sent/20 || len(s.By) != 3 {
		t.Errorf("steady state loses %d of %d datagrams, accepted by %v", s.Lost, s.Sent, s.By)
	}

	l.moves("SIGTERM of the master", func() { l.leave(d1) }, "start", d1.start)
	l.moves("drain", func() { l.drain(d3) }, "undrain", func() { d3.must(d3.tell("undrain")) })
	l.survives("SIGKILL, with the link up", d2.kill, "restart", d2.start)
	l.survives("power cut", func() { d3.setLink(false); d3.kill() }, "return", func() { d3.setLink(true); d3.start() })
	l.survives("SIGSTOP", func() { d3.signal(syscall.SIGSTOP) }, "SIGCONT", func() { d3.signal(syscall.SIGCONT) })
	l.survives("cable pulled", func() { d1.setLink(false) }, "cable back", func() { d1.setLink(true) })
	out, err = d1.saru("events")
	l.must(err)
	for _, why := range []string{"from d2 to d1: d2 is unreachable", "from d3 to d1: d3 drains"} {
		if !strings.Contains(out, why) {
			t.Errorf("%q, which is why a share moved, is not among the events:\n%s", why, out)
		}
	}

	mark = time.Now()
	l.must(in(d2.ns, func() error { return exec.Command("nft", "flush", "ruleset").Run() }))
	time.Sleep(200 * time.Millisecond)
	l.until("open again after a flush", l.shared(3))
	l.soon("nft flush ruleset", mark)

	mark = time.Now()
	d1.signal(syscall.SIGKILL)
	d2.kill()
	d1.wait()
	l.until("the last one has all", l.shared(1))
	l.soon("two killed at once", mark)
	stop()
	l.neverTwice()
}

// moves has a director give its share away as planned, and take one again: no
// flow notices.
func (l *lab) moves(what string, do func(), back string, undo func()) {
	l.Helper()
	all, mark := len(l.nodes), time.Now()
	do()
	l.until("given away by "+what, l.shared(all-1))
	l.seamless(what, mark)
	mark = time.Now()
	undo()
	l.until("all share after "+back, l.shared(all))
	l.seamless(back, mark)
}

// survives has an accident happen to one director, whose share the others soon
// have, and which accepts nothing then; and has it return, as a planned move.
func (l *lab) survives(what string, happens func(), back string, returns func()) {
	l.Helper()
	all, mark := len(l.nodes), time.Now()
	happens()
	l.until("taken over after "+what, l.shared(all-1))
	time.Sleep(2 * pace.lease)
	l.soon(what, mark)
	mark = time.Now()
	time.Sleep(pace.lease)
	if s := l.seen.Between(mark, time.Now().Add(-50*time.Millisecond)); len(s.By) != all-1 {
		l.Errorf("long after %s datagrams are accepted by %v", what, s.By)
	}
	mark = time.Now()
	returns()
	l.until("all share after "+back, l.shared(all))
	l.seamless(back, mark)
}

// tell runs a subcommand that tells the daemon something.
func (n *node) tell(args ...string) error {
	if out, err := n.saru(args...); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

// kill ends a director's daemon at once.
func (n *node) kill() {
	n.Helper()
	n.signal(syscall.SIGKILL)
	n.wait()
}

// leave stops a director's daemon, which leaves nothing behind.
func (l *lab) leave(n *node) {
	l.Helper()
	n.signal(syscall.SIGTERM)
	if code := n.wait(); code != 0 {
		l.Errorf("exit status %d after SIGTERM", code)
	}
	l.clean(n)
}

// drain has a director give its share away, and sees that it has when the
// command returns.
func (l *lab) drain(n *node) {
	l.Helper()
	if err := n.tell("drain"); err != nil {
		l.Error(err)
	}
	if st, err := n.status(); err != nil || st.Share.Buckets != 0 {
		l.Errorf("drain returned while %d buckets were open here (%v)", st.Share.Buckets, err)
	}
}
