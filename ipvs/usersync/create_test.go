package usersync_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// bulk are entries on the site's web service.
func bulk(n int) []usersync.Change {
	changes := make([]usersync.Change, n)
	for i := range changes {
		changes[i].Connection = &conntable.Connection{
			Key: conntable.Key{
				Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 83, byte(i >> 8), byte(i)}), 1024),
				Virtual:  netip.MustParseAddrPort(vip + ":80"),
				Protocol: 6,
			},
			Dest:    netip.MustParseAddrPort(serverIP + ":8080"),
			State:   tcpEstablished,
			Timeout: 900 * time.Second,
		}
	}
	return changes
}

func results(t testing.TB, res []usersync.Result, err error, want func(usersync.Result) bool) {
	t.Helper()
	must(t, err)
	for i, r := range res {
		if !want(r) {
			t.Fatalf("result %d: %d (%v)", i, r, r.Err())
		}
	}
}

// activeConns is what ipvsadm shows for the site's web service.
func activeConns(t testing.TB) (active uint32) {
	t.Helper()
	c, err := ipvs.Dial()
	must(t, err)
	defer c.Close()
	services, err := c.Services()
	must(t, err)
	for _, s := range services {
		if s.Addr.Port() != 80 {
			continue
		}
		dests, err := c.Dests(s)
		must(t, err)
		for _, d := range dests {
			active += d.Active
		}
	}
	return active
}

// TestCreate: entries come out as they went in, changes are guarded, and what
// cannot be is refused by name.
func TestCreate(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	cl := dialModule(t)
	one := func(ch usersync.Change) usersync.Result {
		t.Helper()
		res, err := cl.Create(nil, []usersync.Change{ch})
		must(t, err)
		return res[0]
	}
	web := bulk(1)[0]
	packets := uint32(41)
	web.Packets, web.Remaining = &packets, 100*time.Second
	web.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 4, Delta: 5, Prev: 6}}
	web.Flags = conntable.FlagSeqMask
	web.FWMark = 9
	if r := one(web); !r.Created() || r.Err() != nil {
		t.Fatalf("create: %v", r.Err())
	}
	rec, found, err := cl.Get(web.Key)
	must(t, err)
	if !found || rec.State != tcpEstablished || rec.Packets != 41 || rec.Remaining > 101*time.Second || rec.Remaining < 50*time.Second ||
		rec.Timeout != 900*time.Second || rec.Seq == nil || *rec.Seq != *web.Seq || rec.FWMark != 9 ||
		rec.Flags != conntable.FlagSeqMask|conntable.FlagSync {
		t.Errorf("created %+v, %v", rec, found)
	}
	out, err := exec.Command("ipvsadm", "-Lnc").CombinedOutput()
	line := "ESTABLISHED 10.83.0.0:1024 " + vip + ":80 " + serverIP + ":8080"
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(out)), " "), line) {
		t.Errorf("ipvsadm -Lnc: %v\n%s", err, out)
	}

	// Times that are longer than 31 bits of milliseconds: ipvsadm allows 31 days.
	days := bulk(2)[1]
	days.Timeout, days.Remaining = 31*24*time.Hour, 30*24*time.Hour
	if r := one(days); !r.Created() {
		t.Errorf("31 days: %v", r.Err())
	}
	rec, found, err = cl.Get(days.Key)
	if must(t, err); !found || rec.Timeout != days.Timeout || rec.Remaining > days.Remaining+time.Second || rec.Remaining < days.Remaining-time.Hour {
		t.Errorf("31 days: %+v, %v", rec, found)
	}
	res, err := cl.Delete(nil, []usersync.Change{days})
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })

	// Guarded updates.
	web.State, web.Timeout, web.Remaining = tcpFinWait, 120*time.Second, 0
	web.Flags |= conntable.FlagInactive
	wrong := uint32(40)
	web.Expect = &wrong
	if r := one(web); !errors.Is(r.Err(), unix.EBUSY) {
		t.Errorf("update over a wrong packet count: %v", r.Err())
	}
	web.Expect = &packets
	if r := one(web); r.Err() != nil || r.Created() {
		t.Errorf("update: %v", r.Err())
	}
	if rec, _, _ := cl.Get(web.Key); rec.State != tcpFinWait || rec.Timeout != 120*time.Second || rec.Flags&conntable.FlagInactive == 0 {
		t.Errorf("updated %+v", rec)
	}
	web.Expect = nil

	// Another real server: old news are refused, new ones replace the entry.
	other := bulk(1)[0]
	other.Connection.Dest = netip.MustParseAddrPort("10.82.2.3:8080")
	other.Flags = conntable.FlagInactive
	if r := one(other); !errors.Is(r.Err(), unix.ESTALE) {
		t.Errorf("inactive, another real server: %v", r.Err())
	}
	other.Flags = 0
	if r := one(other); r.Err() != nil || !r.Created() || r.Bound() {
		t.Errorf("another real server: %v", r)
	}
	if res, err := cl.Delete(nil, []usersync.Change{web}); err != nil || !errors.Is(res[0].Err(), unix.ENOENT) {
		t.Errorf("delete with the old real server: %v, %v", res, err)
	}
	if rec, _, _ := cl.Get(web.Key); rec.Dest != other.Dest || rec.Bound {
		t.Errorf("replaced %+v", rec)
	}
	if res, err := cl.Delete(nil, []usersync.Change{other}); err != nil || res[0].Err() != nil {
		t.Errorf("delete: %v, %v", res, err)
	}
	if res, err := cl.Delete(nil, []usersync.Change{other}); err != nil || !errors.Is(res[0].Err(), unix.ENOENT) {
		t.Errorf("delete again: %v, %v", res, err)
	}

	// Bound late: the service comes after the entry.
	late := bulk(1)[0]
	late.Virtual = netip.MustParseAddrPort(vip + ":90")
	if r := one(late); r.Bound() {
		t.Error("bound to nothing")
	}
	must(t, command("ipvsadm", "-A", "-t", vip+":90", "-s", "rr"))
	must(t, command("ipvsadm", "-a", "-t", vip+":90", "-r", serverIP+":8080", "-m"))
	if r := one(late); !r.Bound() || r.Created() {
		t.Errorf("bound late: %v", r)
	}

	// Other families and protocols.
	six := bulk(1)[0]
	six.Client = netip.MustParseAddrPort("[2001:db8::1]:1024")
	six.Virtual = netip.MustParseAddrPort("[2001:db8::100]:80")
	six.Connection.Dest = netip.MustParseAddrPort("[2001:db8::5]:80")
	six.Flags = conntable.FlagFwdGate
	template := bulk(1)[0]
	template.Client = netip.MustParseAddrPort(clientIP + ":0")
	template.Virtual = netip.MustParseAddrPort(vip + ":82")
	template.Template, template.State = true, 1
	sctp := bulk(1)[0]
	sctp.Protocol, sctp.State = 132, 13
	for name, ch := range map[string]usersync.Change{"IPv6": six, "template": template, "SCTP": sctp} {
		if r := one(ch); !r.Created() {
			t.Errorf("%s: %v", name, r.Err())
			continue
		}
		rec, found, err := cl.Get(ch.Key)
		if err != nil || !found || rec.Key != ch.Key || rec.Dest != ch.Dest || rec.State != ch.State {
			t.Errorf("%s: %+v, %v, %v", name, rec, found, err)
		}
	}

	for _, bad := range []struct {
		name   string
		change func(c *conntable.Connection)
		want   unix.Errno
	}{
		{"unknown protocol", func(c *conntable.Connection) { c.Protocol = 99 }, unix.EINVAL},
		{"state that TCP has not", func(c *conntable.Connection) { c.State = 11 }, unix.ERANGE},
		{"state that a template has not", func(c *conntable.Connection) { c.Template, c.State = true, 2 }, unix.ERANGE},
		{"no timeout", func(c *conntable.Connection) { c.Timeout = 0 }, unix.ERANGE},
		{"one packet", func(c *conntable.Connection) { c.Flags = conntable.FlagOnePacket }, unix.EINVAL},
		{"template without port", func(c *conntable.Connection) { c.Template, c.Flags = true, conntable.FlagNoCPort }, unix.EINVAL},
		{"sequence flags without data", func(c *conntable.Connection) { c.Flags = conntable.FlagInSeq }, unix.EINVAL},
		{"no such forwarding", func(c *conntable.Connection) { c.Flags = 7 }, unix.EINVAL},
		{"families mixed", func(c *conntable.Connection) { c.Virtual = six.Virtual }, unix.EINVAL},
		{"dest of another family", func(c *conntable.Connection) { c.Dest = six.Dest }, unix.EAFNOSUPPORT},
		{"engine not there", func(c *conntable.Connection) {
			c.Template, c.State, c.PEName, c.PEData = true, 0, "nosuch", []byte("x")
		}, unix.ENOPROTOOPT},
	} {
		ch := bulk(1)[0]
		bad.change(ch.Connection)
		if r := one(ch); !errors.Is(r.Err(), bad.want) {
			t.Errorf("%s: %v, want %v", bad.name, r.Err(), bad.want)
		}
	}
}

// TestPersistenceEngine: a template's key has the engine's data in it.
func TestPersistenceEngine(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	if err := command("modprobe", "ip_vs_pe_sip"); err != nil {
		t.Skipf("no SIP engine: %v", err)
	}
	cl := dialModule(t)
	ch := bulk(1)[0]
	ch.Key = conntable.Key{Client: netip.MustParseAddrPort(clientIP + ":0"), Virtual: netip.MustParseAddrPort(vip + ":5060"), Protocol: 17, Template: true}
	ch.State, ch.PEName, ch.PEData = 0, "sip", []byte("call-1")
	for i, want := range []bool{true, false} {
		res, err := cl.Create(nil, []usersync.Change{ch})
		results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil && r.Created() == want })
		n := 0
		must(t, cl.Dump(usersync.Filter{Protocol: 17}, func(r *usersync.Record) error {
			n++
			if r.PEName != "sip" || string(r.PEData) != "call-1" {
				t.Errorf("%+v", r)
			}
			return nil
		}))
		if n != 1 {
			t.Errorf("round %d: %d entries", i, n)
		}
	}
	res, err := cl.Delete(nil, []usersync.Change{ch})
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	// The engine is referenced by nobody now.
	eventually(t, "engine unloaded", func() bool { return command("rmmod", "ip_vs_pe_sip") == nil })
}
