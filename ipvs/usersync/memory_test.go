package usersync_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs/usersync"
)

var allocations = flag.Int("usync.allocations", 400, "at how many allocations TestLoadWithoutMemory refuses memory")

// The tests of this file need a debug kernel of the lab (test/lab/debug.config).

const kmemleak = "/sys/kernel/debug/kmemleak"

// leaked returns what the kernel takes for leaked memory, "" if nothing or if
// it does not look for any.
func leaked(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat(kmemleak); err != nil {
		return ""
	}
	// Two scans must find an object unchanged, at an age of 5 s at least.
	for range 2 {
		time.Sleep(6 * time.Second)
		must(t, os.WriteFile(kmemleak, []byte("scan"), 0))
	}
	text, err := os.ReadFile(kmemleak)
	must(t, err)
	return string(text)
}

// A refusal makes the kernel refuse this thread memory, once, at its nth
// allocation from then on (fail-nth of Documentation/fault-injection).
type refusal struct{ file *os.File }

func (r refusal) set(t testing.TB, nth int) {
	t.Helper()
	_, err := r.file.WriteAt(fmt.Appendf(nil, "%d", nth), 0)
	must(t, err)
}

// done reports whether the allocation came.
func (r refusal) done(t testing.TB) bool {
	t.Helper()
	left := make([]byte, 20)
	n, err := r.file.ReadAt(left, 0)
	if n == 0 {
		t.Fatalf("fail-nth: %v", err)
	}
	return strings.TrimSpace(string(left[:n])) == "0"
}

// failing calls fn again and again: at first it is refused its first
// allocation, then its second one, and so on, until it needs no more, or after
// max. prepare comes before each call and is refused nothing. failing returns
// how often an allocation was refused.
func failing(t testing.TB, max int, prepare, fn func()) (refused int) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Nor shall the garbage collector want memory meanwhile.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	file, err := os.OpenFile("/proc/thread-self/fail-nth", os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	r := refusal{file}
	for nth := 1; nth <= max; nth++ {
		prepare()
		r.set(t, nth)
		fn()
		done := r.done(t)
		r.set(t, 0)
		if !done {
			return refused
		}
		refused++
	}
	return refused
}

// faulty skips where the kernel cannot be told to refuse memory, and makes it
// refuse any kind of it, in silence.
func faulty(t *testing.T) {
	t.Helper()
	for file, value := range map[string]string{"ignore-gfp-wait": "N", "verbose": "0"} {
		err := os.WriteFile("/sys/kernel/debug/failslab/"+file, []byte(value), 0)
		if errors.Is(err, os.ErrNotExist) {
			t.Skip("this kernel has no fault injection (CONFIG_FAILSLAB)")
		}
		must(t, err)
	}
}

// TestLoadWithoutMemory: loading the module fails well at each allocation that
// it needs, and leaves nothing.
func TestLoadWithoutMemory(t *testing.T) {
	if !inside(t) {
		return
	}
	faulty(t)
	newSite(t)
	unload(t)
	image, err := os.ReadFile(moduleFile())
	must(t, err)
	before := resources(t)
	errs := map[string]int{}
	loaded := false
	leave := func() {
		if loaded {
			unload(t)
		}
	}
	n := failing(t, *allocations, leave, func() {
		// The kernel does without some of them, for files of sysfs for instance.
		err := unix.InitModule(image, "")
		loaded = err == nil
		errs[fmt.Sprint(err)]++
	})
	leave()
	t.Logf("%d allocations refused: %v", n, errs)
	if n < 10 {
		t.Error("nothing was tried")
	}
	eventually(t, "as before", func() bool { return before.like(resources(t)) })
	must(t, insmod())
	emptyTable(t, dialModule(t))
	healthy(t)
}

// TestCommandsWithoutMemory: each command fails well at each allocation that it
// needs, and leaves nothing that cannot be deleted.
func TestCommandsWithoutMemory(t *testing.T) {
	if !inside(t) {
		return
	}
	faulty(t)
	newSite(t)
	must(t, command("modprobe", "ip_vs_pe_sip"))
	entries := bulk(3)
	template := bulk(1)[0]
	template.Connection = &conntable.Connection{
		Key:  conntable.Key{Client: netip.MustParseAddrPort(clientIP + ":0"), Virtual: netip.MustParseAddrPort(vip + ":5060"), Protocol: 17, Template: true},
		Dest: template.Dest, Timeout: template.Timeout,
		PEName: "sip", PEData: []byte("call-1"),
	}
	entries = append(entries, template)
	create := func(cl *usersync.Client) error { _, err := cl.Create(nil, entries); return err }
	remove := func(cl *usersync.Client) error { _, err := cl.Delete(nil, entries); return err }
	for _, c := range []struct {
		name        string
		prepare, do func(*usersync.Client) error
	}{
		{"create", remove, create},
		{"update", create, create},
		{"delete", create, remove},
		{"get", create, func(cl *usersync.Client) error { _, _, err := cl.Get(entries[0].Key); return err }},
		{"dump", create, func(cl *usersync.Client) error {
			return cl.Dump(usersync.Filter{}, func(*usersync.Record) error { return nil })
		}},
		{"dump of some", create, func(cl *usersync.Client) error {
			return cl.Dump(usersync.Filter{Protocol: 6}, func(*usersync.Record) error { return nil })
		}},
		{"stats", create, func(cl *usersync.Client) error { _, err := cl.Stats(); return err }},
	} {
		errs := map[string]int{}
		var cl *usersync.Client
		n := failing(t, 200, func() {
			if cl != nil {
				cl.Close()
			}
			// A new one: what was refused in the middle leaves an answer unread.
			var err error
			cl, err = usersync.Dial()
			must(t, err)
			must(t, c.prepare(cl))
		}, func() {
			if err := c.do(cl); err != nil {
				errs[err.Error()]++
			}
		})
		cl.Close()
		t.Logf("%s: %d allocations refused: %v", c.name, n, errs)
		if n == 0 {
			t.Errorf("%s: nothing was tried", c.name)
		}
	}
	cl := dialModule(t)
	must(t, remove(cl)) // emptyTable knows no persistence data
	emptyTable(t, cl)
	must(t, cl.Close())
	unload(t)
	eventually(t, "engine unloaded", func() bool { return command("rmmod", "ip_vs_pe_sip") == nil })
	healthy(t)
}
