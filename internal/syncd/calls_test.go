package syncd

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
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
