package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Where no switch floods, the master answers for the address with its own MAC,
// and hands to the others what is theirs. Whoever dies, is stopped or leaves,
// the others go on, and nothing is accepted twice.
func TestForward(t *testing.T) {
	l := newLab(t, 3, "")
	d1, d2, d3 := l.nodes[0], l.nodes[1], l.nodes[2]
	for _, n := range l.nodes {
		b, err := os.ReadFile(n.conf)
		l.must(err)
		l.must(os.WriteFile(n.conf, bytes.Replace(b, []byte("[share]"), []byte("[share]\nmode = \"forward\""), 1), 0o600))
	}
	d1.start()
	l.until("one serves", l.shared(1))
	d2.start()
	d3.start()
	l.until("three share", l.shared(3))
	stop := l.traffic()
	defer stop()
	for _, port := range []string{"d1", "d2", "d3", "client"} {
		l.must(in(l.sw, func() error { return exec.Command("bridge", "link", "set", "dev", port, "flood", "off").Run() }))
	}
	steady := func(what string, mark time.Time, want ...string) {
		t.Helper()
		time.Sleep(time.Second)
		l.report(what, mark)
		s := l.seen.Between(mark, time.Now().Add(-100*time.Millisecond))
		if s.Lost > s.Sent/20 || len(s.By) != len(want) {
			t.Errorf("%s: %d of %d datagrams lost, accepted by %v; want %v", what, s.Lost, s.Sent, s.By, want)
		}
	}
	time.Sleep(500 * time.Millisecond)
	steady("steady", time.Now(), "d1", "d2", "d3")
	st, err := d1.status()
	if f := st.Filter; err != nil || st.Share.Mode != "forward" || st.Master != "d1" || f.Forwarded == 0 || !f.Intact {
		t.Errorf("the master's status: %+v, %v", st, err)
	}

	// Either of the two layers that keep packets out comes back when somebody
	// takes it away.
	mark := time.Now()
	l.run(d1.ns, "nft flush ruleset")
	time.Sleep(1500 * time.Millisecond)
	l.run(d1.ns, "tc qdisc del dev eth0 clsact")
	time.Sleep(1500 * time.Millisecond)
	l.until("three share after a flush", l.shared(3))
	l.report("nft flush ruleset", mark)
	if out := l.run(d1.ns, "tc filter show dev eth0 ingress"); !strings.Contains(out, "saru-fence") {
		t.Errorf("the fence did not come back: %q", out)
	}
	steady("after that", time.Now(), "d1", "d2", "d3")

	mark = time.Now()
	d2.signal(syscall.SIGKILL)
	d2.wait()
	l.until("a forwarded-to director's share is taken over", l.shared(2))
	l.report("kill -9 of another", mark)
	steady("after that", time.Now(), "d1", "d3")
	mark = time.Now()
	d2.start()
	l.until("back", l.shared(3))
	time.Sleep(1200 * time.Millisecond)
	l.report("rejoin", mark)
	steady("after that", time.Now(), "d1", "d2", "d3")

	// The master's kernel goes on forwarding until the caches have heard of the
	// next one.
	mark = time.Now()
	d1.signal(syscall.SIGKILL)
	d1.wait()
	l.until("the master's share is taken over", l.shared(2))
	l.report("kill -9 of the master", mark)
	steady("after that", time.Now(), "d2", "d3")
	master := func() *node {
		for _, n := range l.nodes {
			if n.cmd == nil {
				continue
			}
			if st, err := n.status(); err == nil {
				for _, m := range l.nodes {
					if m.name == st.Master {
						return m
					}
				}
			}
		}
		t.Fatal("nobody knows a master")
		return nil
	}
	d1.start()
	l.until("back", l.shared(3))

	mark = time.Now()
	stopped := master()
	stopped.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	l.report("SIGSTOP of the master", mark)
	if by := l.seen.Between(mark.Add(time.Second), time.Now().Add(-50*time.Millisecond)).By; by[stopped.name] > 0 || len(by) != 2 {
		t.Errorf("a second after %s, the master, was stopped: accepted by %v", stopped.name, by)
	}
	stopped.signal(syscall.SIGCONT)
	l.until("back after SIGCONT", l.shared(3))

	time.Sleep(time.Second)
	mark = time.Now()
	leaving := master()
	leaving.signal(syscall.SIGTERM)
	if code := leaving.wait(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	l.until("given away by SIGTERM", l.shared(2))
	time.Sleep(300 * time.Millisecond)
	l.report("SIGTERM of the master", mark)
	if s := l.seen.Between(mark, time.Now().Add(-100*time.Millisecond)); s.Gap > 300*time.Millisecond {
		t.Errorf("a planned stop of the master: %d lost, a gap of %v", s.Lost, s.Gap)
	}
	l.clean(leaving)
	l.must(in(leaving.ns, func() error {
		out, err := exec.Command("sh", "-c", "tc qdisc show dev eth0; nft list tables").CombinedOutput()
		if strings.Contains(string(out), "clsact") || strings.Contains(string(out), "saru") {
			return fmt.Errorf("left behind: %s", out)
		}
		return err
	}))
	stop()
	l.neverTwice()
}

// The master advertises an IPv6 address with its own MAC, and the next one does
// when it is gone.
func TestForwardIPv6(t *testing.T) {
	const vip, on = "2001:db8:9::100", "[2001:db8:9::100]:80"
	l := newLab(t, 2, "")
	l.edit("[share]", "[share]\nmode = \"forward\"")
	l.edit(`["10.9.0.100"]`, `["10.9.0.100", "`+vip+`"]`)
	for i, n := range l.nodes {
		l.run(n.ns, fmt.Sprintf("ip -6 addr add 2001:db8:9::%d/64 dev eth0 nodad", i+2))
	}
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	l.run(client, "ip -6 addr add 2001:db8:9::1/64 dev eth0 nodad")
	for _, port := range []string{"d1", "d2", "client"} {
		l.run(l.sw, "bridge link set dev "+port+" flood off")
	}
	l.start()
	servers := l.greet("tcp6", on)
	defer servers.close()
	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 30000, 30019); len(by) != 2 {
		t.Errorf("answered by %v, want both", by)
	}
	st, err := l.nodes[0].status()
	l.must(err)
	for _, n := range l.nodes {
		if n.name == st.Master {
			n.signal(syscall.SIGKILL)
			n.wait()
		}
	}
	l.until("the other has all", l.shared(1))
	if by := l.answers(client, "tcp6", "[2001:db8:9::1]", on, 31000, 31009); len(by) != 1 || by[st.Master] > 0 {
		t.Errorf("with the master dead: answered by %v", by)
	}
}
