package syncd

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
)

const closedLife = 10 * time.Second // the kernel's timeout in CLOSE

// A pair is two synced directors.
func pair(t *testing.T, seed uint64) (a, b *node) {
	t.Helper()
	a, b, _ = twoNodes(t, seed)
	if !a.Synced() || !b.Synced() {
		t.Fatal("not synced after 3 s")
	}
	return a, b
}

// What the kernel did without a word becomes known to the peers' kernels.
func TestAuditTellsWhatTheKernelDidNot(t *testing.T) {
	for name, tc := range map[string]struct {
		do    func(a *node, c conntable.Connection) // silently, 5 s after c was told
		after time.Duration
		check func(t *testing.T, c conntable.Connection, e fakeEntry, there bool)
	}{
		"a server's reset": {
			func(a *node, c conntable.Connection) {
				c.State, c.Timeout, c.Flags = tcpClose, closedLife, c.Flags|conntable.FlagInactive
				a.kernel.serve(c)
			}, 6 * time.Second,
			func(t *testing.T, _ conntable.Connection, e fakeEntry, there bool) {
				if !there || e.State != tcpClose || time.Until(e.until) > closedLife || e.Flags&conntable.FlagInactive == 0 {
					t.Errorf("the peer's kernel has %+v, %v; want a connection that is closed", e, there)
				}
			},
		},
		"it goes at once": {
			func(a *node, c conntable.Connection) { a.kernel.lost(c.Key) }, (missedOften + 1) * auditEvery,
			func(t *testing.T, _ conntable.Connection, e fakeEntry, there bool) {
				if there {
					t.Errorf("the peer's kernel still has %+v", e)
				}
			},
		},
		"its life was cut": {
			func(a *node, c conntable.Connection) { c.Timeout = 60 * time.Second; a.kernel.serve(c) }, 10 * time.Second,
			func(t *testing.T, _ conntable.Connection, e fakeEntry, there bool) {
				if left := time.Until(e.until); !there || left > 53*time.Second || left < 47*time.Second {
					t.Errorf("in the peer's kernel %v remain, %v; want 50 s", left, there)
				}
			},
		},
		"nothing": {
			func(*node, conntable.Connection) {}, 30 * time.Second,
			func(t *testing.T, _ conntable.Connection, e fakeEntry, there bool) {
				if left := time.Until(e.until); !there || e.State != established || left > 866*time.Second || left < 864*time.Second {
					t.Errorf("the peer's kernel has %+v with %v left, %v; want what the owner has, 865 s", e, left, there)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 21)
				c := tcp(1, established, 900*time.Second)
				a.capture(c)
				time.Sleep(5 * time.Second)
				injected := b.kernel.injections()
				tc.do(a, c)
				time.Sleep(tc.after)
				e, there := b.kernel.entry(c.Key)
				tc.check(t, c, e, there)
				if name == "nothing" && (b.kernel.injections() != injected || b.Status().Audit.Passes == 0) {
					t.Errorf("told again %d times though nothing changed, %+v", b.kernel.injections()-injected, b.Status().Audit)
				}
			})
		})
	}
}

// A connection that no record told of is found, but a handshake is left alone.
func TestAuditFindsWhatWasNeverTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 22)
		c, half := tcp(1, established, 900*time.Second), tcp(2, 3, 60*time.Second)
		a.kernel.serve(c)
		a.kernel.serve(half)
		time.Sleep(15 * time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != c.Dest || e.State != established {
			t.Errorf("the peer's kernel has %+v, %v", e, ok)
		}
		if _, ok := b.kernel.entry(half.Key); ok || a.table.Len() != 1 {
			t.Errorf("a half-open connection was told")
		}
	})
}

// What may be older than the news that came meanwhile is nobody's news.
func TestAuditPassesOverTornEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(t, 30)
		a.kernel.mu.Lock()
		a.kernel.torn = true
		a.kernel.mu.Unlock()
		c := tcp(1, established, 900*time.Second)
		a.kernel.serve(c) // without a word
		time.Sleep(10 * auditEvery)
		if got := a.Status().Audit; got.Told != 0 || got.Gone != 0 {
			t.Errorf("told of torn entries: %+v", got)
		}
		a.kernel.mu.Lock()
		a.kernel.torn = false
		a.kernel.mu.Unlock()
		time.Sleep(4 * auditEvery)
		if got := a.Status().Audit; got.Told != 1 {
			t.Errorf("did not tell of a whole one: %+v", got)
		}
	})
}

// A connection that was over before the peers heard of it, of a client who used
// his port for another real server before, replaces the old one; but not at once,
// since it could be the last word of one that was replaced, told late.
func TestAuditReplacesWhatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 28)
		c := tcp(1, established, 900*time.Second)
		c.Dest = realA
		a.capture(c)
		time.Sleep(time.Second)
		c.Dest, c.State, c.Timeout, c.Flags = realB, finWait, 120*time.Second, c.Flags|conntable.FlagInactive
		a.capture(c)
		time.Sleep(time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realA {
			t.Errorf("the peer's kernel has %+v, %v; want what it had", e, ok)
		}
		time.Sleep(4 * auditEvery)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB || e.State != finWait || e.Flags&conntable.FlagInactive == 0 {
			t.Errorf("the peer's kernel has %+v, %v; want the one to %v", e, ok, realB)
		}
	})
}

// What the kernel's backup thread lost is told again, and counted.
func TestAuditMendsTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 23)
		b.kernel.mu.Lock()
		b.kernel.lose = 3
		b.kernel.mu.Unlock()
		const many = 10
		for i := range many {
			a.capture(tcp(i, established, 900*time.Second))
		}
		time.Sleep(time.Second)
		stale := tcp(5, established, 900*time.Second)
		b.kernel.mu.Lock()
		if len(b.kernel.table) != many-3 {
			t.Errorf("the kernel has %d entries, so this test shows nothing", len(b.kernel.table))
		}
		b.kernel.mu.Unlock()
		// One that the kernel has in an older state.
		closing := stale
		closing.State, closing.Timeout = finWait, 120*time.Second
		a.capture(closing)
		time.Sleep(time.Second)
		stale.Flags |= conntable.FlagSync
		b.kernel.serve(stale)
		time.Sleep(3 * auditEvery)
		for i := range many {
			e, ok := b.kernel.entry(tcp(i, 0, 0).Key)
			if want := map[bool]uint16{true: finWait, false: established}[i == 5]; !ok || e.State != want {
				t.Errorf("connection %d: the kernel has %+v, %v; want state %d", i, e, ok, want)
			}
		}
		if st := b.Status(); st.Kernel.Reinjected < 4 || st.Audit.Reinjected != st.Kernel.Reinjected {
			t.Errorf("%+v %+v", st.Kernel, st.Audit)
		}
		if st := a.Status(); st.Audit.Told+st.Audit.Gone+st.Audit.Reinjected != 0 {
			t.Errorf("the owner's audit changed something: %+v", st.Audit)
		}
	})
}

// News that come while the table is read are newer than what is read.
func TestAuditNeverReplacesNewerState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 24)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		time.Sleep(5 * time.Second)
		closed, news := c, c
		closed.State, closed.Timeout = tcpClose, closedLife
		news.State, news.Timeout = finWait, 120*time.Second
		var read atomic.Int32
		a.kernel.mu.Lock()
		a.kernel.during = func() { // the slice was read when the news come
			if read.Add(1) == 1 {
				a.Captured(&news)
			}
		}
		a.kernel.mu.Unlock()
		a.kernel.serve(closed)
		time.Sleep(6 * time.Second)
		if read.Load() == 0 {
			t.Fatal("no pass")
		}
		if e, _ := b.kernel.entry(c.Key); e.State != finWait {
			t.Errorf("the peer's kernel has state %d, want the news' %d", e.State, finWait)
		}
	})
}

// An entry that a pass or two passed over is not told to be gone.
func TestAuditDoesNotBelieveWhatItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 28)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		for range 5 {
			time.Sleep(auditEvery + time.Second)
			a.kernel.mu.Lock()
			kept := a.kernel.table[c.Key]
			delete(a.kernel.table, c.Key)
			a.kernel.mu.Unlock()
			time.Sleep(missedOften/2*auditEvery + time.Second)
			a.kernel.mu.Lock()
			a.kernel.table[c.Key] = kept
			a.kernel.mu.Unlock()
		}
		if _, ok := b.kernel.entry(c.Key); !ok || a.Status().Audit.Gone != 0 {
			t.Errorf("told to be gone: %+v", a.Status().Audit)
		}
	})
}

// An entry of which the kernel kept what was deleted is deleted again.
func TestAuditDeletesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 25)
		c := tcp(1, established, 900*time.Second)
		a.capture(c)
		time.Sleep(5 * time.Second)
		a.kernel.lost(c.Key)
		time.Sleep((missedOften + 1) * auditEvery)
		kept := c
		kept.Flags |= conntable.FlagSync
		b.kernel.mu.Lock()
		b.kernel.table[c.Key] = &fakeEntry{kept, time.Now().Add(700 * time.Second), true}
		b.kernel.mu.Unlock()
		time.Sleep(6 * time.Second)
		if _, ok := b.kernel.entry(c.Key); ok || b.Status().Audit.Deleted != 1 {
			t.Errorf("the kernel still has it: %v, %+v", ok, b.Status().Audit)
		}
	})
}

// A connection that began here under the key of one that a peer had deleted,
// and that the kernel did not tell of, is not taken for what was deleted.
func TestAuditDoesNotDeleteWhatIsUsed(t *testing.T) {
	for name, saru := range map[string]bool{"saru tells whose it is": true, "nobody tells": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 29)
				c := tcp(1, established, 900*time.Second)
				a.capture(c)
				time.Sleep(5 * time.Second)
				a.kernel.lost(c.Key)
				time.Sleep((missedOften + 1) * auditEvery)
				if _, ok := b.kernel.entry(c.Key); ok {
					t.Fatal("it was not deleted, so this test shows nothing")
				}
				if saru {
					defer a.serves(t, false)()
					defer b.serves(t, true)()
				}
				time.Sleep(10 * time.Second)
				again := c
				again.Dest = realA
				b.kernel.serve(again)
				time.Sleep(2*auditEvery + time.Second)
				if e, ok := b.kernel.entry(c.Key); !ok || b.Status().Audit.Deleted != 0 {
					t.Errorf("the kernel has %+v, %v; %+v", e, ok, b.Status().Audit)
				}
				if e, ok := a.kernel.entry(c.Key); !ok || e.Dest != realA {
					t.Errorf("the peer's kernel has %+v, %v", e, ok)
				}
			})
		})
	}
}

// A handshake here from a port that a peer's connection had before is left alone.
func TestAuditLeavesANewHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 27)
		for i, state := range []uint16{tcpTimeWait, tcpClose} {
			c := tcp(2*i, state, 120*time.Second)
			b.capture(c)
			time.Sleep(4 * time.Second)
			c.State, c.Timeout = tcpSynRecv, time.Minute
			if i == 0 {
				c.Dest = realB
			}
			a.kernel.serve(c)
			time.Sleep(30 * time.Second)
			if e, _ := a.kernel.entry(c.Key); e.State != tcpSynRecv || e.Dest != c.Dest {
				t.Errorf("after state %d: the kernel has %+v; want the handshake", state, e.Connection)
			}
		}
	})
}
