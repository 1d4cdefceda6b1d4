package syncd

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// A connection that talks costs the peers two records for each of its
// timeouts, not six a minute, and never comes close to its end there.
func TestRefreshesAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 31)
		c := tcp(1, established, 900*time.Second)
		least := c.Timeout
		_, before := a.session.Sent()
		const hours = 2
		for range hours * 360 {
			a.capture(c) // the kernel tells every 10 s
			time.Sleep(10 * time.Second)
			e, ok := b.kernel.entry(c.Key)
			if !ok {
				t.Fatal("the peer's kernel let it die")
			}
			least = min(least, time.Until(e.until))
		}
		_, after := a.session.Sent()
		if sent := after - before; sent > hours*8+1 {
			t.Errorf("%d records in %d hours; want 8 an hour", sent, hours)
		}
		if least < c.Timeout/2-refreshRound {
			t.Errorf("%v remained at the peer at the least; want half of %v", least, c.Timeout)
		}
		if p := b.Status().Peers[0]; p.DigestEqual == nil || !*p.DigestEqual || a.Status().Sent.Suppressed < 600 {
			t.Errorf("%+v %+v", p, a.Status().Sent)
		}
	})
}

// One that fell silent after refreshes that the peers were not told dies on
// both at the same second.
func TestSilentConnectionsDieEverywhereAtOnce(t *testing.T) {
	for name, c := range map[string]conntable.Connection{
		"TCP": tcp(1, established, 900*time.Second), "template": template("10.1.0.9", realA),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 32)
				a.capture(c)
				for range 10 {
					time.Sleep(c.Timeout / 30)
					a.capture(c)
				}
				if a.Status().Sent.Suppressed == 0 {
					t.Fatal("no refresh was held back, so this test shows nothing")
				}
				last := time.Now()
				time.Sleep(c.Timeout/2 + 2*refreshRound)
				e, ok := b.kernel.entry(c.Key)
				want := c.Timeout
				if early := last.Add(want).Sub(e.until); !ok || early > exact || !c.Template && early < -exact {
					t.Errorf("the peer's kernel lets it die %v before its owner's, %v", early, ok)
				}
				var ra, rb conntable.Record
				if !a.table.Lookup(c.Key, &ra) || !b.table.Lookup(c.Key, &rb) || (ra.Remaining-rb.Remaining).Abs() > time.Second {
					t.Errorf("in the mirrors %v and %v remain", ra.Remaining, rb.Remaining)
				}
				time.Sleep(time.Until(last.Add(want + exact)))
				if a.table.Len() != 0 || b.table.Len() != 0 {
					t.Errorf("%d and %d connections outlived their timeout", a.table.Len(), b.table.Len())
				}
			})
		})
	}
}

// What only the server keeps alive is seen in the kernel's table.
func TestServerAloneKeepsAlive(t *testing.T) {
	for _, tc := range []struct {
		timeout          time.Duration
		retold, toldMost uint64 // in 1000 s; by rounds, and in all
	}{
		{300 * time.Second, 6, 8}, // about once in 150 s
		{30 * time.Second, 0, 101},
	} {
		t.Run(tc.timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 33)
				c := tcp(1, established, tc.timeout)
				a.capture(c)
				for range 100 {
					time.Sleep(10 * time.Second)
					a.kernel.serve(c)
					if _, ok := b.kernel.entry(c.Key); !ok {
						t.Fatal("the peer's kernel let it die")
					}
				}
				sent := a.Status().Sent
				if sent.Retold < tc.retold || sent.Records > tc.toldMost+1 {
					t.Errorf("told %d times in 1000 s, %d of them by rounds; want %d at most, and %d by rounds", sent.Records, sent.Retold, tc.toldMost, tc.retold)
				}
			})
		})
	}
}

// What is more than a refresh is told at once, and so are refreshes of short
// timeouts.
func TestOnlyRefreshesAreHeldBack(t *testing.T) {
	for name, change := range map[string]func(*conntable.Connection){
		"state":    func(c *conntable.Connection) { c.State = finWait },
		"server":   func(c *conntable.Connection) { c.Dest = realA },
		"timeout":  func(c *conntable.Connection) { c.Timeout = 600 * time.Second },
		"sequence": func(c *conntable.Connection) { c.Seq = &conntable.SeqPair{In: conntable.Seq{Delta: 3}} },
		"flags":    func(c *conntable.Connection) { c.Flags |= conntable.FlagNoOutput },
		"data":     func(c *conntable.Connection) { c.PEName, c.PEData = "sip", []byte("call") },
		"short":    func(c *conntable.Connection) { c.Timeout = 30 * time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := start(t, peertest.New(34), 1, newFakeKernel())
				c := tcp(1, established, 900*time.Second)
				if name == "short" {
					change(&c)
				}
				a.capture(c)
				time.Sleep(time.Second)
				_, before := a.session.Sent()
				if name != "short" {
					change(&c)
				}
				a.capture(c)
				time.Sleep(time.Second)
				if _, after := a.session.Sent(); after != before+1 {
					t.Errorf("%d records sent, want 1", after-before)
				}
			})
		})
	}
}

// A round of a table that is large takes longer, and no refresh is held back
// that could then come too late.
func TestRoundsOfLargeTables(t *testing.T) {
	for _, c := range []struct {
		entries int
		round   time.Duration
		from    time.Duration
	}{
		{0, 15 * time.Second, 60 * time.Second},
		{1_500_000, 15 * time.Second, 60 * time.Second},
		{3_000_000, 30 * time.Second, 60 * time.Second},
		{4_000_000, 40 * time.Second, 80 * time.Second},
		{1 << 30, 10737418240 * time.Microsecond, 2 * 10737418240 * time.Microsecond},
	} {
		if round, from := roundTime(c.entries), heldFrom(c.entries); round != c.round || from != c.from {
			t.Errorf("%d entries: a round of %v, refreshes held back from a timeout of %v on; want %v and %v", c.entries, round, from, c.round, c.from)
		}
	}
}

// BenchmarkRefresh: a record of the kernel's that the peers need not hear of.
func BenchmarkRefresh(b *testing.B) {
	e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler)})
	conns := make([]conntable.Connection, 1<<12)
	for i := range conns {
		conns[i] = tcp(i, established, 900*time.Second)
		e.Captured(&conns[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Captured(&conns[i&(len(conns)-1)])
		i++
	}
	if e.suppressed.Load() == 0 {
		b.Fatal("nothing was held back")
	}
}
