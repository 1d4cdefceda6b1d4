package syncd

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/ownership"
	"saru/partition"
)

func template(client string, dest netip.AddrPort) conntable.Connection {
	c := tcp(0, 1, 300*time.Second)
	c.Client = netip.AddrPortFrom(netip.MustParseAddr(client), 0)
	c.Template, c.Flags, c.Dest = true, c.Flags|conntable.FlagTemplate, dest
	return c
}

// Two directors that chose for one client come to one choice, in both kernels.
func TestTemplatesThatDisagreeAreBroughtToOne(t *testing.T) {
	for keep, within := range []time.Duration{20 * time.Second, 45 * time.Second, 80 * time.Second} {
		t.Run(fmt.Sprintf("%d deletions lost", keep), func(t *testing.T) { testTemplatesThatDisagree(t, keep, within) })
	}
}

func testTemplatesThatDisagree(t *testing.T, keep int, within time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 27)
		a.kernel.keep = keep
		mine, other := template("10.1.0.9", realA), template("10.1.0.9", realB)
		a.capture(mine)
		time.Sleep(time.Second)
		b.capture(other)
		time.Sleep(within)
		for _, n := range []*node{a, b} {
			if e, ok := n.kernel.entry(mine.Key); !ok || e.Dest != realB {
				t.Errorf("%s: the kernel has %+v, %v; want the later choice %v", n.node, e, ok, realB)
			}
		}
		if st := a.Status().Templates; st.Conflicts != 1 || st.Left != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What the audit sees of a template does not make its choice a later one.
func TestTemplatesStateIsNoLaterChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 27)
		mine := template("10.1.0.9", realA)
		mine.State = 0
		a.capture(mine)
		time.Sleep(time.Second)
		chosen := a.clock.Now()
		time.Sleep(10 * time.Second)
		mine.State = 1                   // assured
		mine.Timeout = 288 * time.Second // /proc shows what remains, and no timeout
		a.kernel.serve(mine)             // without a word
		time.Sleep(20 * time.Second)
		var r conntable.Record
		if !b.table.Lookup(mine.Key, &r) || r.State != 1 {
			t.Fatalf("the peer has %+v; want state 1", r)
		}
		if r.Version.Clock >= chosen {
			t.Errorf("the peer has version %d; want the choice's, before %d", r.Version.Clock, chosen)
		}
		if r.Timeout != 300*time.Second {
			t.Errorf("the peer has timeout %v; want the template's own, 5m0s", r.Timeout)
		}
		if e, _ := b.kernel.entry(mine.Key); e.State != 1 {
			t.Errorf("the peer's kernel has %+v; want state 1", e)
		}
	})
}

// A template that a packet chose anew while the old one was about to be deleted
// stays.
func TestTemplateThatIsUsedIsNotDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 27)
		mine, other := template("10.1.0.9", realA), template("10.1.0.9", realB)
		a.capture(mine)
		time.Sleep(time.Second)
		b.capture(other)
		for a.Status().Templates.Conflicts == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		a.capture(mine)
		time.Sleep(5 * time.Second)
		if e, ok := a.kernel.entry(mine.Key); !ok || e.Dest != realA || a.kernel.deleted != 0 {
			t.Errorf("the kernel has %+v, %v, after %d deletions; want what its packets chose last", e, ok, a.kernel.deleted)
		}
	})
}

// A template that is served here is not deleted for what a peer says.
func TestTemplateThatIsServedIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, network := twoNodes(t, 27)
		mine, other := template("10.1.0.9", realA), template("10.1.0.9", realB)
		network.SetCut(a.net, b.net, true)
		a.capture(mine)
		time.Sleep(time.Second)
		b.capture(other)
		byClient := sharePlan
		byClient.Default.Sense = partition.SrcAddr
		defer a.servesOf(t, byClient, true)()
		defer b.servesOf(t, byClient, false)()
		time.Sleep(2 * ownership.Settle)
		network.SetCut(a.net, b.net, false)
		time.Sleep(30 * time.Second)
		for _, n := range []*node{a, b} {
			if e, ok := n.kernel.entry(mine.Key); !ok || e.Dest != realA {
				t.Errorf("%s: the kernel has %+v, %v; want the choice of the director that serves it", n.node, e, ok)
			}
		}
		if a.kernel.deleted != 0 {
			t.Errorf("deleted %d times at the director that serves it", a.kernel.deleted)
		}
	})
}
