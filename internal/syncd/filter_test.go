package syncd

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

func TestServiceFilter(t *testing.T) {
	conn := func(virtual string, protocol uint8) conntable.Connection {
		return conntable.Connection{Key: conntable.Key{Virtual: netip.MustParseAddrPort(virtual), Protocol: protocol}}
	}
	marked := conn("10.1.1.1:443", 6)
	marked.FWMark = 5
	markTemplate := conn("0.0.0.5:0", 0)
	markTemplate.Template = true
	portless := conn("10.9.0.100:0", 6)
	portless.Template = true
	type list = []string
	for _, c := range []struct {
		only, except list
		conn         conntable.Connection
		want         bool
	}{
		{nil, nil, conn("10.9.0.100:80", 6), true},
		{list{"10.9.0.100"}, nil, conn("10.9.0.100:80", 6), true},
		{list{"10.9.0.100"}, nil, conn("10.9.0.101:80", 6), false},
		{list{"10.9.0.100:80"}, nil, conn("10.9.0.100:80", 17), true},
		{list{"10.9.0.100:80"}, nil, conn("10.9.0.100:81", 6), false},
		{list{"10.9.0.100:80"}, nil, portless, true},
		{list{"10.9.0.100:53/udp"}, nil, conn("10.9.0.100:53", 17), true},
		{list{"10.9.0.100:53/udp"}, nil, conn("10.9.0.100:53", 6), false},
		{list{"10.9.0.0/24"}, nil, conn("10.9.0.7:1", 6), true},
		{list{"10.9.0.0/24/tcp"}, nil, conn("10.9.0.7:1", 17), false},
		{list{"2001:db8::/32"}, nil, conn("[2001:db8::1]:53", 17), true},
		{list{"[2001:db8::1]:53"}, nil, conn("[2001:db8::1]:54", 17), false},
		{list{"fwmark 5"}, nil, marked, true},
		{list{"fwmark 5"}, nil, markTemplate, true},
		{list{"fwmark 6"}, nil, marked, false},
		{list{"fwmark 6", "10.1.1.1"}, nil, marked, true},
		{nil, list{"10.9.0.100:53/udp"}, conn("10.9.0.100:53", 17), false},
		{nil, list{"10.9.0.100:53/udp"}, conn("10.9.0.100:80", 6), true},
		{list{"10.9.0.0/24"}, list{"10.9.0.100"}, conn("10.9.0.100:80", 6), false},
	} {
		f, err := ParseServiceFilter(c.only, c.except)
		must(t, err)
		if got := f.Takes(&c.conn); got != c.want {
			t.Errorf("only %q, except %q: takes %v %v, want %v", c.only, c.except, c.conn.Virtual, got, c.want)
		}
		// Its text means the same.
		again, err := ParseServiceFilter(textsOf(f))
		must(t, err)
		if again.String() != f.String() || again.Takes(&c.conn) != c.want {
			t.Errorf("%q, read again, is %q", f, again)
		}
	}
	for _, bad := range []string{"", "web", "10.9.0.100:0", "10.9.0.100:80/ipx", "10.9.0.0/33", "fwmark", "fwmark x", "fwmark 0", "10.9.0.100:70000", "fe80::1%eth0"} {
		_, err := ParseServiceFilter([]string{bad}, nil)
		wantBad(t, err, "filter.services: ")
	}
}

func textsOf(f *ServiceFilter) (only, except []string) {
	if f == nil {
		return nil, nil
	}
	for i := range f.only {
		only = append(only, f.only[i].String())
	}
	for i := range f.except {
		except = append(except, f.except[i].String())
	}
	return only, except
}

func FuzzParseService(f *testing.F) {
	for _, s := range []string{"10.9.0.100:80/udp", "10.9.0.0/24", "fwmark 5", "[2001:db8::1]:53/17", "::/0/tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, ok := parseService(s)
		if !ok {
			return
		}
		if again, ok := parseService(m.String()); !ok || again != m {
			t.Fatalf("%q is %q, which is %+v, %v; want %+v", s, m.String(), again, ok, m)
		}
	})
}

// A service that is mirrored no more is left alone, in all kernels.
func TestFilterThatIsNarrowedDeletesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 3)
		mine, theirs := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second)
		a.capture(mine)
		b.capture(theirs)
		time.Sleep(time.Second)
		f, err := ParseServiceFilter(nil, []string{vip.String()})
		must(t, err)
		a.SetFilter(f)
		before := a.kernel.injections()
		moved := theirs
		moved.State = closeWait
		a.kernel.serve(moved) // here now, without a word
		time.Sleep(5 * time.Minute)
		if e, there := b.kernel.entry(mine.Key); !there {
			t.Errorf("the peer's kernel lost a living connection: %+v", e)
		}
		if e, _ := a.kernel.entry(theirs.Key); e.State != closeWait {
			t.Errorf("the kernel has %+v; want what its packets made of it", e)
		}
		if n := a.kernel.injections() - before; n != 0 {
			t.Errorf("the kernel was told %d times of a service that is not mirrored", n)
		}
		if st := a.Status(); st.Filtered != 2 || st.Audit.Gone != 0 {
			t.Errorf("%d filtered, %d gone; want the two that were pulled again, and none", st.Filtered, st.Audit.Gone)
		}
	})
}

// What peers told of a service that is mirrored from now on is fetched.
func TestFilterThatIsWidenedFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 4)
		none, err := ParseServiceFilter(nil, []string{vip.String()})
		must(t, err)
		all, err := ParseServiceFilter(nil, nil)
		must(t, err)
		b.SetFilter(none)
		time.Sleep(time.Second)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		time.Sleep(time.Second)
		if _, there := b.kernel.entry(c.Key); there {
			t.Fatal("the kernel was told of a service that is not mirrored")
		}
		b.SetFilter(all)
		time.Sleep(3 * time.Second)
		if _, there := b.kernel.entry(c.Key); !there {
			t.Error("the kernel was not told of what its peer has of a service that is mirrored now")
		}
	})
}

// What is not of a mirrored service is neither told nor taken.
func TestOnlyFilteredServicesAreMirrored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		f, err := ParseServiceFilter([]string{vip.String()}, nil)
		must(t, err)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		a.SetFilter(f)
		time.Sleep(3 * time.Second)
		in, out := tcp(1, established, 900*time.Second), tcp(2, established, 900*time.Second)
		out.Virtual = netip.AddrPortFrom(vip.Addr(), 22)
		for _, c := range []conntable.Connection{in, out} {
			a.capture(c)
			c.Client = netip.AddrPortFrom(c.Client.Addr(), 999)
			b.capture(c)
		}
		time.Sleep(20 * time.Millisecond)
		if a.kernel.len() != 1 || b.kernel.len() != 1 || a.table.Len() != 2 {
			t.Errorf("a's kernel was told %d, b's %d, a mirrors %d; want 1, 1, 2", a.kernel.len(), b.kernel.len(), a.table.Len())
		}
		if st := a.Status(); st.Filter != vip.String() || st.Filtered != 2 {
			t.Errorf("filter %q kept out %d", st.Filter, st.Filtered)
		}
		a.SetFilter(nil)
		a.capture(out)
		time.Sleep(20 * time.Millisecond)
		if b.kernel.len() != 2 {
			t.Error("without the filter the other service is not told")
		}
	})
}
