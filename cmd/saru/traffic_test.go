package main

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"saru/membership"
	"saru/test/datagrams"
)

const (
	service = 9000 // the UDP port that clients ask
	ports   = 300  // that a client asks from: each its own flow
)

// listen notes the datagrams that n's kernel accepts for the service.
func (n *node) listen() {
	var c *net.UDPConn
	n.must(in(n.ns, func() (err error) {
		c, err = datagrams.Listen(service)
		return err
	}))
	n.goUntilEnd(func() { c.Close() }, func() { n.seen.Receive(c, n.name) })
}

// traffic has a new host on the switch send numbered datagrams from many
// ports, until stop is called.
func (l *lab) traffic() (stop func()) {
	for _, n := range l.nodes {
		n.listen()
	}
	return l.client("client", "br0", "10.9.0.1")
}

// client has a new host send numbered datagrams until stop is called.
func (l *lab) client(name, bridge, addr string) (stop func()) {
	l.Helper()
	ns := l.newNS()
	l.plug(ns, bridge, name, addr)
	var flows []*net.UDPConn
	l.must(in(ns, func() (err error) {
		flows, err = l.seen.Dial(netip.MustParseAddrPort("10.9.0.100:9000"))
		return err
	}))
	ctx, cancel := context.WithCancel(l.Context())
	done := make(chan struct{})
	go func() { defer close(done); l.seen.Send(ctx, flows, pace.rate) }()
	return sync.OnceFunc(func() {
		cancel()
		<-done
		time.Sleep(100 * time.Millisecond) // what is in flight
		datagrams.Close(flows)
	})
}

// twice returns when the first and the last datagram was sent that was accepted
// more than once, and how many times that happened.
func (l *lab) twice() (first, last time.Time, n int) {
	for _, a := range l.seen.Twice() {
		if n == 0 || a.Sent.Before(first) {
			first = a.Sent
		}
		if a.Sent.After(last) {
			last = a.Sent
		}
		n++
	}
	return first, last, n
}

func (l *lab) neverTwice() {
	l.Helper()
	twice := l.seen.Twice()
	for _, a := range twice[:min(10, len(twice))] {
		l.Errorf("datagram %d, sent at %s, was accepted by %s at %s and by %s at %s",
			a.Number, clock(a.Sent), a.First.By, clock(a.First.At), a.By, clock(a.At))
	}
	sent, accepted := l.seen.Counts()
	l.Logf("%d datagrams sent, %d accepted, %d of them more than once", sent, accepted, len(twice))
}

func clock(t time.Time) string { return t.Format("05.000000") }

// report logs what became of the datagrams since a time.
func (l *lab) report(what string, since time.Time) datagrams.Summary {
	l.Helper()
	s := l.seen.Between(since, time.Now().Add(-50*time.Millisecond))
	l.Logf("%-28s %d of %d datagrams lost, longest gap %v, of a port %v, accepted %v",
		what+":", s.Lost, s.Sent, s.Outage.Round(time.Millisecond), s.Gap.Round(time.Millisecond), s.By)
	return s
}

// An accident may leave flows without an acceptor for what a watcher waits
// and a few heartbeats; a planned move, for two transactions, two heartbeats
// and the settling between them.
func (l *lab) soon(what string, since time.Time) {
	l.within(what, since, membership.Watch(pace.lease)+pace.lease)
}
func (l *lab) seamless(what string, since time.Time) { l.within(what, since, pace.lease/3) }

// within asserts that no flow was without an acceptor for longer than may, and
// by how much the directors' own ticks were late on this machine: that of who
// noticed, of the master, and of who took over.
func (l *lab) within(what string, since time.Time, may time.Duration) {
	l.Helper()
	late := time.Duration(0)
	for _, n := range l.nodes {
		if n.cmd == nil || n.stopped {
			continue
		}
		if st, err := n.status(); err == nil {
			late = max(late, time.Duration(st.Engine.WorstTickMS*float64(time.Millisecond)))
		}
	}
	s := l.report(what, since)
	if gap := max(s.Gap, s.Outage); gap > may+3*late && !emulated {
		l.Errorf("%s: flows had no acceptor for %v; the bound is %v, and ticks were late by up to %v", what, gap, may, late)
	}
}

// goUntilEnd runs f beside the test; its end calls stop and waits for f.
func (l *lab) goUntilEnd(stop, f func()) {
	done := make(chan struct{})
	l.Cleanup(func() { stop(); <-done })
	go func() { defer close(done); f() }()
}

// signal tells the daemon something.
func (n *node) signal(s syscall.Signal) {
	n.Helper()
	n.paused = s == syscall.SIGSTOP
	n.stopped = n.stopped || n.paused
	n.must(n.cmd.Process.Signal(s))
}
