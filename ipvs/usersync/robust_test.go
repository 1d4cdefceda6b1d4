package usersync_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/ipvs/usersync"
)

// The tests of this file try to break the module. A guest whose kernel
// complains gravely panics, which fails the run; kernelLog finds lesser
// complaints.

// kernelLog returns the lines of the kernel's log that tell of a fault; a call
// trace alone does not, memory that was refused has one, too.
func kernelLog(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("dmesg").CombinedOutput()
	must(t, err)
	bad := regexp.MustCompile(`BUG|WARNING|Oops|general protection fault|INFO: (task|rcu|trying)|refcount_t|suspicious|was changed by somebody else|request for already hashed`)
	var lines []string
	for line := range strings.Lines(string(out)) {
		if bad.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func healthy(t testing.TB) {
	t.Helper()
	if log := kernelLog(t); log != "" {
		t.Errorf("the kernel says\n%s", log)
	}
	if objects := leaked(t); objects != "" {
		t.Errorf("leaked, the kernel says:\n%s", objects)
	}
}

// TestMalformed: a buggy caller gets an error, whatever it sends.
func TestMalformed(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	cl := dialModule(t)
	good := usersync.ChangeAttrs(&bulk(1)[0])
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	var many []byte
	for range usersync.MaxConns + 1 {
		many = append(many, good...)
	}
	// Numbers as in ip_vs_user_sync.h.
	const get, create, del, stats, events = 1, 2, 3, 4, 5
	for _, c := range []struct {
		name  string
		flags uint16
		cmd   uint8
		attrs []byte
		want  error
	}{
		{"nothing to create", 0, create, nil, unix.EINVAL},
		{"nothing to get", 0, get, nil, unix.EINVAL},
		{"too many", 0, create, many, unix.E2BIG},
		{"unknown command", 0, 77, nil, unix.EOPNOTSUPP},
		{"a notification's number", 0, events, nil, unix.EOPNOTSUPP},
		{"an attribute that is only told", 0, create, usersync.AppendRaw(good, 4, u32(1)...), unix.EINVAL},
		{"an attribute of a newer version", 0, create, usersync.AppendRaw(good, 100, u32(1)...), unix.EINVAL},
		{"its like in a connection", 0, create, usersync.AppendNested(usersync.ChangeAttrs(&bulk(1)[0]), usersync.AppendRaw(nil, 100, u32(1)...)), unix.EINVAL},
		{"a told one in a connection", 0, create, usersync.AppendNested(usersync.ChangeAttrs(&bulk(1)[0]), usersync.AppendRaw(nil, 21, make([]byte, 8)...)), unix.EINVAL},
		{"a connection that is no nest", 0, create, usersync.AppendRaw(nil, 2, u32(1)...), unix.EINVAL},
		{"a short number", 0, create, usersync.AppendNested(usersync.ChangeAttrs(&bulk(1)[0]), usersync.AppendRaw(nil, 12, 1)), unix.EINVAL},
		{"a short address", 0, create, usersync.AppendNested(usersync.ChangeAttrs(&bulk(1)[0]), usersync.AppendRaw(nil, 3, 1)), unix.ERANGE},
		{"rubbish behind", 0, create, append(usersync.ChangeAttrs(&bulk(1)[0]), 9, 9, 9, 9), unix.EINVAL},
		{"attributes where none belong", 0, stats, usersync.AppendRaw(nil, 4, u32(1)...), unix.EINVAL},
		{"dump of what has no dump", unix.NLM_F_DUMP, create, nil, unix.EOPNOTSUPP},
		{"filter with a state", unix.NLM_F_DUMP, get, good, unix.EINVAL},
		{"created in the end", 0, create, usersync.ChangeAttrs(&bulk(1)[0]), nil},
	} {
		if err := cl.Send(c.flags, c.cmd, c.attrs); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	st, err := cl.Stats()
	must(t, err)
	if st.Connections != 1 {
		t.Errorf("%d entries, one was asked for rightly", st.Connections)
	}
	healthy(t)
}

// TestFuzzedRequests: right requests with random faults.
func TestFuzzedRequests(t *testing.T) {
	if !inside(t) {
		return
	}
	newSite(t)
	cl := dialModule(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	counts := map[string]int{}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		ch := bulk(300)[rng.IntN(300)]
		if rng.IntN(4) == 0 {
			ch.Template, ch.State = true, uint16(rng.IntN(3))
		}
		if rng.IntN(4) == 0 {
			ch.PEName, ch.PEData = "sip", make([]byte, 1+rng.IntN(255))
		}
		attrs := usersync.ChangeAttrs(&ch)
		for range rng.IntN(4) {
			switch rng.IntN(4) {
			case 0:
				attrs[rng.IntN(len(attrs))] = byte(rng.Uint32())
			case 1:
				attrs[rng.IntN(len(attrs))] ^= 1 << rng.IntN(8)
			case 2:
				attrs = attrs[:1+rng.IntN(len(attrs))]
			case 3:
				attrs = append(attrs, attrs[:rng.IntN(len(attrs))]...)
			}
		}
		var flags uint16
		if rng.IntN(8) == 0 {
			flags = unix.NLM_F_DUMP
		}
		err := cl.Send(flags, uint8(rng.IntN(7)), attrs)
		var refused *usersync.KernelError
		switch {
		case err == nil:
			counts["accepted"]++
		case errors.As(err, &refused):
			counts[refused.Errno.Error()]++
		default:
			t.Fatalf("%v for %x", err, attrs)
		}
	}
	t.Logf("%v", counts)
	if counts["accepted"] == 0 || counts[unix.EINVAL.Error()] == 0 {
		t.Error("nothing was tried")
	}
	n := 0
	must(t, cl.Dump(usersync.Filter{}, func(*usersync.Record) error { n++; return nil }))
	st, err := cl.Stats()
	must(t, err)
	t.Logf("%d entries are left; %+v", n, st)
	healthy(t)
}

const envProbe = "SARU_TEST_PROBE"

// probe prints what a process may do.
func probe() {
	c, err := usersync.Dial()
	if err != nil {
		fmt.Println("dial:", err)
		return
	}
	say := func(what string, err error) {
		if errors.Is(err, unix.EPERM) {
			fmt.Println(what, "EPERM")
			return
		}
		fmt.Println(what, err)
	}
	say("dump", c.Dump(usersync.Filter{}, func(*usersync.Record) error { return nil }))
	_, err = c.Stats()
	say("stats", err)
	_, err = c.Create(nil, bulk(1))
	say("create", err)
	_, err = c.Delete(nil, bulk(1))
	say("delete", err)
	_, err = usersync.Listen(usersync.Handler{})
	say("listen", err)
}

// TestPrivileges: nobody without CAP_NET_ADMIN hears or does anything; root of
// a user namespace reads its own network namespace.
func TestPrivileges(t *testing.T) {
	if !inside(t) {
		return
	}
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	mapped := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	user := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: mapped, GidMappings: mapped,
	}
	for _, c := range []struct {
		name string
		attr *syscall.SysProcAttr
		want string
	}{
		{"nobody", nobody, "dump EPERM\nstats EPERM\ncreate EPERM\ndelete EPERM\nlisten EPERM\n"},
		{"user namespace", user, "dump <nil>\nstats <nil>\ncreate EPERM\ndelete EPERM\nlisten <nil>\n"},
	} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envProbe+"=1")
		cmd.SysProcAttr = c.attr
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

// TestUnloaded: who speaks or listens learns that the module was unloaded.
func TestUnloaded(t *testing.T) {
	if !inside(t) {
		return
	}
	cl := dialModule(t)
	l, err := usersync.Listen((&recorder{}).handler())
	must(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	if _, found, err := cl.Get(bulk(1)[0].Key); found || err != nil {
		t.Errorf("get before: %v, %v", found, err)
	}
	unload(t)
	if err := <-done; !errors.Is(err, usersync.ErrNotLoaded) {
		t.Errorf("listener: %v", err)
	}
	_, statsErr := cl.Stats()
	_, _, getErr := cl.Get(bulk(1)[0].Key)
	_, createErr := cl.Create(nil, bulk(1))
	_, dialErr := usersync.Dial()
	_, listenErr := usersync.Listen(usersync.Handler{})
	for what, err := range map[string]error{
		"stats": statsErr, "get": getErr, "create": createErr, "dial": dialErr, "listen": listenErr,
		"dump": cl.Dump(usersync.Filter{}, func(*usersync.Record) error { return nil }),
	} {
		if !errors.Is(err, usersync.ErrNotLoaded) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
