package usersync_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"saru/ipvs/usersync"
)

// TestNamespacesApart: events, entries, commands and counters of one
// namespace are not another's.
func TestNamespacesApart(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	r := listen(t)
	cl := dialModule(t)
	other := newNamespace(t)
	var there *usersync.Client
	must(t, in(other, func() (err error) { there, err = usersync.Dial(); return err }))
	defer there.Close()
	res, err := there.Create(nil, bulk(10))
	results(t, res, err, func(r usersync.Result) bool { return r.Created() && !r.Bound() })
	res, err = there.Delete(nil, bulk(5))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	res, err = cl.Delete(nil, bulk(10)[9:])
	results(t, res, err, func(r usersync.Result) bool { return errors.Is(r.Err(), unix.ENOENT) })
	for c, want := range map[*usersync.Client]int{cl: 0, there: 5} {
		n := 0
		must(t, c.Dump(usersync.Filter{}, func(*usersync.Record) error { n++; return nil }))
		if n != want {
			t.Errorf("%d entries, want %d", n, want)
		}
		st, err := c.Stats()
		must(t, err)
		if st.Connections != uint64(want) {
			t.Errorf("%+v, want %d connections", st, want)
		}
	}
	// An event of here, after which those of there would have come.
	res, err = cl.Create(nil, bulk(1))
	results(t, res, err, usersync.Result.Created)
	res, err = cl.Delete(nil, bulk(1))
	results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
	r.await(t, "own event", 1024, 80, kind(usersync.KindExpired))
	if n := len(r.of(1024, 80)); n != 1 {
		t.Errorf("%d events", n)
	}
}

// TestVanishingNamespace: namespaces end with entries, in the middle of a
// dump, and with listeners.
func TestVanishingNamespace(t *testing.T) {
	if !inside(t) {
		return
	}
	before := resources(t)
	for range 10 {
		ns := newNamespace(t)
		var c *usersync.Client
		var l *usersync.Listener
		must(t, in(ns, func() (err error) {
			if c, err = usersync.Dial(); err != nil {
				return err
			}
			l, err = usersync.Listen((&recorder{}).handler())
			return err
		}))
		res, err := c.Create(nil, bulk(2000))
		results(t, res, err, usersync.Result.Created)
		must(t, c.BeginDump(usersync.Filter{}))
		// Events wait to be sent when it ends.
		res, err = c.Delete(nil, bulk(10))
		results(t, res, err, func(r usersync.Result) bool { return r.Err() == nil })
		must(t, errors.Join(ns.Close(), c.Close(), l.Close()))
	}
	// The module goes when no dump holds it any more.
	unload(t)
	eventually(t, "as before", func() bool { return before.like(resources(t)) })
	healthy(t)
}
