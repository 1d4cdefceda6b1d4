package usersync_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs/usersync"
)

// TestLifeOfAConnection: each step of a TCP connection is told, with its
// fields, and its end.
func TestLifeOfAConnection(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	accepted := s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "80", 10*time.Second)
	must(t, err)
	from := port(c.LocalAddr())

	first := r.await(t, "new", from, 80, kind(usersync.KindNew))
	want := conntable.Key{
		Client:   netip.AddrPortFrom(netip.MustParseAddr(clientIP), from),
		Virtual:  netip.MustParseAddrPort(vip + ":80"),
		Protocol: 6,
	}
	if first.Key != want || first.Dest != netip.MustParseAddrPort(serverIP+":8080") || !first.Bound ||
		first.Flags&conntable.FlagFwdMask != conntable.FlagFwdMasq || first.Flags&conntable.FlagSync != 0 {
		t.Errorf("new: %+v", first)
	}
	// Established is told with it if that follows within a millisecond.
	if first.State != tcpSynRecv && first.State != tcpEstablished || first.Remaining.Truncate(time.Second) != first.Timeout {
		t.Errorf("new: %+v", first)
	}
	est := r.await(t, "established", from, 80, state(tcpEstablished))
	if est.Timeout != 900*time.Second || est.Cookie != first.Cookie || est.Stamp < first.Stamp || est.Flags&conntable.FlagInactive != 0 {
		t.Errorf("established: %+v", est)
	}
	(<-accepted).Close()
	c.Close()
	fin := r.await(t, "closing", from, 80, func(e *usersync.Record) bool { return e.State == tcpFinWait || e.State == tcpTimeWait })
	if fin.Flags&conntable.FlagInactive == 0 || fin.Packets == 0 {
		t.Errorf("closing: %+v", fin)
	}
	cl := dialModule(t)
	// Rather than wait for two minutes: what ends it is the same function.
	eventually(t, "deleted", func() bool {
		res, err := cl.Delete(nil, []usersync.Change{{Connection: &conntable.Connection{Key: want}}})
		must(t, err)
		return res[0].Err() == nil
	})
	end := r.await(t, "expired", from, 80, kind(usersync.KindExpired))
	if end.Cookie != first.Cookie || !end.Commanded || end.Dest != first.Dest {
		t.Errorf("expired: %+v", end)
	}
	if _, found, err := cl.Get(want); found || err != nil {
		t.Errorf("still there: %v, %v", found, err)
	}
}

// TestServersReset: what no kernel's sync thread tells, the server's side.
func TestServersReset(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	accepted := s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "80", 10*time.Second)
	must(t, err)
	from := port(c.LocalAddr())
	r.await(t, "established", from, 80, state(tcpEstablished))
	sc := <-accepted
	must(t, sc.SetLinger(0))
	must(t, sc.Close())
	e := r.await(t, "reset", from, 80, state(tcpClose))
	if e.Flags&conntable.FlagInactive == 0 || e.Timeout != 10*time.Second {
		t.Errorf("reset: %+v", e)
	}
	// It expires by itself after 10 s.
	end := r.await(t, "expired", from, 80, kind(usersync.KindExpired))
	if end.Commanded || end.Cookie != e.Cookie {
		t.Errorf("expired: %+v", end)
	}
}

// TestHalfOpen: a connection whose server never answers is told as well.
func TestHalfOpen(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	r := listen(t)
	if _, err := s.dial(t, "tcp4", "81", 300*time.Millisecond); err == nil {
		t.Fatal("nobody answered")
	}
	eventually(t, "half-open", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.events {
			if e.Virtual.Port() == 81 && e.Kind == usersync.KindNew && e.State == tcpSynRecv && e.Dest.Addr().String() == absentIP {
				return true
			}
		}
		return false
	})
}

// TestUDP: new, and told again when it talks after its share of the timeout;
// one-packet services are not told.
func TestUDP(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	must(t, command("ipvsadm", "--set", "0", "0", "3"))
	r := listen(t)
	s.udp(t, 5000, 54)
	s.udp(t, 5001, 53)
	first := r.await(t, "new", 5001, 53, kind(usersync.KindNew))
	if first.Protocol != 17 || first.Timeout != 3*time.Second || first.Dest.Port() != 5353 {
		t.Errorf("new: %+v", first)
	}
	eventually(t, "update", func() bool {
		s.udp(t, 5001, 53)
		for _, e := range r.of(5001, 53) {
			if e.Kind == usersync.KindUpdate && e.Cookie == first.Cookie && e.Packets > first.Packets {
				return true
			}
		}
		return false
	})
	// Each packet tells nothing new.
	before := len(r.of(5001, 53))
	const packets = 200
	for range packets {
		s.udp(t, 5001, 53)
	}
	if n := len(r.of(5001, 53)) - before; n > packets/2 {
		t.Errorf("%d events for %d packets", n, packets)
	}
	end := r.await(t, "expired", 5001, 53, kind(usersync.KindExpired))
	if end.Commanded {
		t.Errorf("expired: %+v", end)
	}
	if got := r.of(5000, 54); len(got) != 0 {
		t.Errorf("one-packet: %+v", got)
	}
}

// TestTemplate: a persistence template is told with its timeout and when it
// becomes assured.
func TestTemplate(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	s.serve(t)
	r := listen(t)
	c, err := s.dial(t, "tcp4", "82", 10*time.Second)
	must(t, err)
	first := r.await(t, "template", 0, 82, kind(usersync.KindNew))
	if !first.Template || first.Timeout != 90*time.Second || first.Client.Addr().String() != clientIP || !first.Bound {
		t.Errorf("template: %+v", first)
	}
	r.await(t, "assured", 0, 82, state(1))
	r.await(t, "its connection", port(c.LocalAddr()), 82, state(tcpEstablished))
	// A template that controls others is not deleted.
	cl := dialModule(t)
	res, err := cl.Delete(nil, []usersync.Change{{Connection: &conntable.Connection{Key: first.Key}}})
	must(t, err)
	if !errors.Is(res[0].Err(), unix.EBUSY) {
		t.Errorf("deleted in use: %v", res[0].Err())
	}
	got, found, err := cl.Get(first.Key)
	if err != nil || !found || !got.Template || got.Timeout != 90*time.Second {
		t.Errorf("get: %+v, %v, %v", got, found, err)
	}
}

// TestAdopted: the first packet of an entry made by command is told, so that
// peers learn who has the connection now.
func TestAdopted(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	cl := dialModule(t)
	r := listen(t)
	ch := bulk(1)[0]
	ch.Key = conntable.Key{Client: netip.MustParseAddrPort(clientIP + ":6000"), Virtual: netip.MustParseAddrPort(vip + ":53"), Protocol: 17}
	ch.Connection.Dest, ch.State = netip.MustParseAddrPort(serverIP+":5353"), 0
	res, err := cl.Create(nil, []usersync.Change{ch})
	results(t, res, err, usersync.Result.Bound)
	s.udp(t, 6000, 53)
	e := r.await(t, "adopted", 6000, 53, kind(usersync.KindAdopted))
	if e.Flags&conntable.FlagSync == 0 || e.Dest != ch.Dest {
		t.Errorf("%+v", e)
	}
	if first := r.of(6000, 53)[0]; first.Kind != usersync.KindAdopted {
		t.Errorf("told before: %+v", first)
	}
}

// TestIPv6: an IPv6 connection is told with its addresses.
func TestIPv6(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	const virtual, server = "2001:db8:82::100", "2001:db8:82:2::2"
	must(t, command("ip", "addr", "add", virtual+"/128", "dev", "lo", "nodad"))
	must(t, command("ip", "addr", "add", "2001:db8:82:1::1/64", "dev", "usync0", "nodad"))
	must(t, command("ip", "addr", "add", "2001:db8:82:2::1/64", "dev", "usync1", "nodad"))
	must(t, command("ipvsadm", "-A", "-u", "["+virtual+"]:53", "-s", "rr"))
	must(t, command("ipvsadm", "-a", "-u", "["+virtual+"]:53", "-r", "["+server+"]:53", "-m"))
	r := listen(t)
	must(t, in(s.client, func() error {
		err := errors.Join(
			command("ip", "addr", "add", "2001:db8:82:1::2/64", "dev", "usyncp0", "nodad"),
			command("ip", "route", "add", "default", "via", "2001:db8:82:1::1"),
		)
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp6", &net.UDPAddr{Port: 7000}, &net.UDPAddr{IP: net.ParseIP(virtual), Port: 53})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	}))
	e := r.await(t, "new", 7000, 53, kind(usersync.KindNew))
	if e.Client != netip.MustParseAddrPort("[2001:db8:82:1::2]:7000") || e.Virtual != netip.MustParseAddrPort("["+virtual+"]:53") ||
		e.Dest != netip.MustParseAddrPort("["+server+"]:53") || !e.Bound {
		t.Errorf("%+v", e)
	}
	rec, found, err := dialModule(t).Get(e.Key)
	if err != nil || !found || rec.Key != e.Key || rec.Cookie != e.Cookie {
		t.Errorf("get: %+v, %v, %v", rec, found, err)
	}
}

// TestLatency: how long events take from the kernel to the program, for the
// log; only that they come is asserted.
func TestLatency(t *testing.T) {
	if !inside(t) {
		return
	}
	s := newSite(t)
	r := listen(t)
	const packets = 200
	for i := range packets {
		s.udp(t, 20000+i, 53)
		time.Sleep(5 * time.Millisecond) // a quiet director
	}
	eventually(t, "all told", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.events) >= packets
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	sorted := slices.Sorted(slices.Values(r.delays))
	t.Logf("from kernel to program: p50 %v, p99 %v, max %v", sorted[len(sorted)/2], sorted[len(sorted)*99/100], sorted[len(sorted)-1])
}
