package syncd

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/syncproto/peer/peertest"
)

// A client's calls are templates of their own, and go into the kernel as the
// kernel has them.
func TestCallsOfOneClientAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 51)
		const calls = 20
		b.kernel.mu.Lock()
		before := b.kernel.injected
		b.kernel.mu.Unlock()
		for i := range calls {
			c := template("10.1.0.9", realA)
			if i%2 == 1 {
				c.Dest = realB
			}
			c.PEName, c.PEData = "sip", fmt.Appendf(nil, "call %d", i)
			a.Captured(&c)
		}
		time.Sleep(time.Second)
		if got := b.table.Len(); got != calls {
			t.Errorf("the mirror has %d calls, want %d", got, calls)
		}
		if got := b.kernel.injections() - before; got != calls {
			t.Errorf("the kernel was told %d calls, want %d", got, calls)
		}
		for key := range b.kernel.conns {
			if key.Client.Port() != 0 {
				t.Errorf("the kernel was told a template of port %d", key.Client.Port())
			}
		}
		if st := b.Status(); st.Templates.Conflicts != 0 {
			t.Errorf("%+v", st.Templates)
		}
	})
}

// What the kernel lost, or did not take, it is told again, of calls too.
func TestCallsAreToldAgain(t *testing.T) {
	const calls = 20
	for what, x := range troubles {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 52)
				b.kernel.with(x.begin)
				for i := range calls {
					c := template("10.1.0.9", realA)
					c.PEName, c.PEData = "sip", fmt.Appendf(nil, "call %d", i)
					a.Captured(&c)
				}
				time.Sleep(500 * time.Millisecond)
				told := map[string]int{}
				b.kernel.with(func(k *fakeKernel) { k.onInject = func(c *conntable.Connection) { told[string(c.PEData)]++ } })
				b.kernel.with(x.end)
				time.Sleep(2 * time.Second)
				for call, n := range told {
					if n != 1 {
						t.Errorf("told of %q %d times", call, n)
					}
				}
				if len(told) != calls {
					t.Errorf("told of %d calls of %d", len(told), calls)
				}
			})
		})
	}
}

// What a call is told apart by is shown, and does nothing to who reads it.
func TestCallsAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, peertest.New(1), 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		call := template("10.1.0.9", realA)
		call.PEName, call.PEData = "sip", []byte("a84b\\4c@h\x1b[2J\n\xff")
		n.capture(call)
		const want = `a84b\x5c4c@h\x1b[2J\x0a\xff`
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/conns", nil))
		var got Conn
		must(t, json.Unmarshal(w.Body.Bytes(), &got))
		if got.PEName != "sip" || got.PEData != want || got.Client != "10.1.0.9:0" {
			t.Errorf("%+v, want the data %s", got, want)
		}
		var b strings.Builder
		must(t, got.Print(&b))
		if !strings.HasSuffix(b.String(), " sip                "+want+"\n") {
			t.Errorf("%q", b.String())
		}
	})
}

// /proc shows calls without what tells them apart, so they are left out.
func TestCallsInTheKernelsTable(t *testing.T) {
	k := known{engines: map[conntable.Key]bool{}}
	for _, s := range []ipvs.Service{
		{Addr: vip, Protocol: 17}, {FWMark: 7, Family: unix.AF_INET}, {FWMark: 7, Family: unix.AF_INET6},
	} {
		s.PEName = "sip"
		k.learn(&s)
	}
	tmpl := func(virtual string, proto uint8) *conntable.Connection {
		return &conntable.Connection{Key: conntable.Key{
			Client: netip.MustParseAddrPort("10.1.0.9:0"), Virtual: netip.MustParseAddrPort(virtual), Protocol: proto, Template: true,
		}}
	}
	for what, x := range map[string]struct {
		c    *conntable.Connection
		want bool
	}{
		"of the service":            {tmpl(vip.String(), 17), true},
		"of another protocol":       {tmpl(vip.String(), 6), false},
		"of another address":        {tmpl("10.9.0.101:80", 17), false},
		"of the mark":               {tmpl("0.0.0.7:0", 0), true},
		"of the mark, IPv6":         {tmpl("[0:7::]:0", 0), true},
		"of another mark":           {tmpl("0.0.0.8:0", 0), false},
		"a connection, no template": {&conntable.Connection{Key: conntable.Key{Virtual: vip, Protocol: 17}}, false},
	} {
		if got := k.isCall(x.c); got != x.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
