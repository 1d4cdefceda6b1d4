package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	service = 9000 // the UDP port that clients ask
	ports   = 300  // that a client asks from: each its own flow
)

// A ledger is who accepted which datagram, when. A datagram's number is its
// index.
type ledger struct {
	mu    sync.Mutex
	sent  []time.Time
	first []acceptance
	more  []again
}

// An acceptance is one director's: the time is the kernel's, of the datagram's
// arrival at its interface.
type acceptance struct {
	by string
	at time.Time
}

type again struct {
	id uint32
	acceptance
}

func (s *ledger) send() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, time.Now().Round(0)) // as the kernel's stamps: of the wall clock
	s.first = append(s.first, acceptance{})
	return uint32(len(s.sent) - 1)
}

func (s *ledger) accept(id uint32, a acceptance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case int(id) >= len(s.sent):
	case s.first[id].by == "":
		s.first[id] = a
	default:
		s.more = append(s.more, again{id, a})
	}
}

// listen notes the datagrams that n's kernel accepts for the service.
func (n *node) listen() {
	var c *net.UDPConn
	n.must(in(n.ns, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: service})
		return err
	}))
	raw, err := c.SyscallConn()
	n.must(err)
	n.must(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}))
	n.must(err)
	seen, name := n.seen, n.name
	n.goUntilEnd(func() { c.Close() }, func() {
		buf, oob := make([]byte, 64), make([]byte, 128)
		for {
			k, o, _, _, err := c.ReadMsgUDP(buf, oob)
			if err != nil {
				return
			}
			if at, ok := stampIn(oob[:o]); ok && k >= 4 {
				seen.accept(binary.BigEndian.Uint32(buf), acceptance{name, at})
			}
		}
	})
}

// stampIn returns the time at which the kernel took a packet in, or sent it
// (SO_TIMESTAMPNS, socket(7)).
func stampIn(oob []byte) (time.Time, bool) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range all {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), true
		}
	}
	return time.Time{}, false
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
	var conns []*net.UDPConn
	l.must(in(ns, func() error {
		for i := range ports {
			c, err := net.DialUDP("udp4", &net.UDPAddr{Port: 20000 + 7*i}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.100:9000")))
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	}))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		start, sent := time.Now(), 0
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			due := int(time.Since(start).Seconds() * float64(pace.rate))
			if due > sent+pace.rate/10 {
				sent = due - pace.rate/10 // we were away: no burst
			}
			for ; sent < due; sent++ {
				id := l.seen.send()
				// Refused or unreachable only means that nobody accepts.
				_, _ = conns[int(id)%ports].Write(binary.BigEndian.AppendUint32(nil, id))
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
		time.Sleep(100 * time.Millisecond) // what is in flight
		for _, c := range conns {
			c.Close()
		}
	})
}

// gap returns the longest time that a port's datagrams were not accepted
// between the two times, and how many were lost.
func (s *ledger) gap(from, to time.Time) (longest time.Duration, lost, sent int, by map[string]int) {
	from, to = from.Round(0), to.Round(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	by = map[string]int{}
	var down [ports]time.Time
	for id, at := range s.sent {
		if at.Before(from) || at.After(to) {
			continue
		}
		sent++
		since := &down[id%ports]
		if who := s.first[id].by; who != "" {
			*since = time.Time{}
			by[who]++
			continue
		}
		lost++
		if since.IsZero() {
			*since = at
		}
		longest = max(longest, at.Sub(*since))
	}
	return longest, lost, sent, by
}

// acceptedBy returns when each of the datagrams that name accepted arrived
// there, from the given time on.
func (s *ledger) acceptedBy(name string, from time.Time) (at []time.Time) {
	from = from.Round(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.first {
		if a.by == name && a.at.After(from) {
			at = append(at, a.at)
		}
	}
	for _, m := range s.more {
		if m.by == name && m.at.After(from) {
			at = append(at, m.at)
		}
	}
	return at
}

// twice returns when the first and the last datagram was sent that was
// accepted more than once, and how many times that happened.
func (s *ledger) twice() (first, last time.Time, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.more {
		at := s.sent[m.id]
		if n == 0 || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		n++
	}
	return first, last, n
}

func (l *lab) neverTwice() {
	l.Helper()
	l.seen.mu.Lock()
	defer l.seen.mu.Unlock()
	for i, m := range l.seen.more {
		if i < 10 {
			f := l.seen.first[m.id]
			l.Errorf("datagram %d, sent at %s, was accepted by %s at %s and by %s at %s", m.id,
				clock(l.seen.sent[m.id]), f.by, clock(f.at), m.by, clock(m.at))
		}
	}
	accepted := 0
	for _, f := range l.seen.first {
		if f.by != "" {
			accepted++
		}
	}
	l.Logf("%d datagrams sent, %d accepted, %d of them more than once", len(l.seen.sent), accepted, len(l.seen.more))
}

func clock(t time.Time) string { return t.Format("05.000000") }

// report logs what became of the datagrams since a time, and returns the
// longest gap.
func (l *lab) report(what string, since time.Time) time.Duration {
	gap, lost, sent, by := l.seen.gap(since, time.Now().Add(-50*time.Millisecond))
	l.Logf("%-28s %d of %d datagrams lost, longest gap of a port %v, accepted %v", what+":", lost, sent, gap.Round(time.Millisecond), by)
	return gap
}

// goUntilEnd runs f beside the test; its end calls stop and waits for f.
func (l *lab) goUntilEnd(stop, f func()) {
	done := make(chan struct{})
	l.Cleanup(func() { stop(); <-done })
	go func() { defer close(done); f() }()
}

// signal tells the daemon something.
func (n *node) signal(s syscall.Signal) { n.must(n.cmd.Process.Signal(s)) }
