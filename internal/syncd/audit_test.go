package syncd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/ownership"
	"saru/partition"
	"saru/syncproto/peer/peertest"
)

const (
	closedLife = 10 * time.Second // the kernel's timeout in CLOSE
)

// A pair is two synced directors.
func pair(t *testing.T, seed uint64) (a, b *node) {
	t.Helper()
	network := peertest.New(seed)
	a, b = start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
	time.Sleep(3 * time.Second)
	if !a.Synced() || !b.Synced() {
		t.Fatal("not synced after 3 s")
	}
	return a, b
}

// datagramPair is pair, of directors that serve datagrams with both real
// servers; and a flow of them to the first.
func datagramPair(t *testing.T, seed uint64) (a, b *node, flow conntable.Connection) {
	t.Helper()
	a, b = pair(t, seed)
	for _, n := range []*node{a, b} {
		n.kernel.learn(datagramTarget(realA), datagramTarget(realB))
	}
	time.Sleep(servicesEvery + time.Second)
	flow = tcp(1, 0, 300*time.Second)
	flow.Protocol, flow.Dest, flow.Flags = protoUDP, realA, flow.Flags|conntable.FlagInactive
	return a, b, flow
}

func datagramTarget(dest netip.AddrPort) Target {
	return Target{Virtual: vip, Protocol: protoUDP, Dest: dest}
}

func template(client string, dest netip.AddrPort) conntable.Connection {
	c := tcp(0, 1, 300*time.Second)
	c.Client = netip.AddrPortFrom(netip.MustParseAddr(client), 0)
	c.Template, c.Flags, c.Dest = true, c.Flags|conntable.FlagTemplate, dest
	return c
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

// A kernel keeps the real server that it has against what it is told of an
// inactive entry, and each of UDP is inactive.
func TestAuditTellsOfADatagramFlowsNewServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 26)
		a.capture(c)
		time.Sleep(5 * time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realA {
			t.Fatalf("the peer's kernel has %+v, %v", e, ok)
		}
		c.Dest = realB
		a.kernel.serve(c) // without a word
		time.Sleep(10 * time.Second)
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB {
			t.Errorf("the peer's kernel has %+v, %v; want it to send to %v", e, ok, realB)
		}
	})
}

// What came meanwhile is not taken off the kernel's queue with what tells
// nothing new.
func TestNewerNewsStaysQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler)})
		c := tcp(1, established, 900*time.Second)
		e.take(&Entry{Connection: c, Remaining: 900 * time.Second}, 0)
		clock := conntable.NewClock(7)
		same := conntable.Record{Connection: c, Version: clock.Next(), Remaining: 900 * time.Second}
		res := e.table.Apply(&same, conntable.ToKernel)
		newer := same
		newer.Version, newer.State = clock.Next(), finWait
		e.table.Apply(&newer, conntable.ToKernel)
		if !e.nothingNew(&same, &res) || e.toKernel.size() != 1 {
			t.Errorf("%d wait for the kernel, want the newer one", e.toKernel.size())
		}
	})
}

// So the peers' kernels are told of an active entry first, when the owner's
// tells of another real server.
func TestDatagramFlowMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 27)
		for i, dest := range []netip.AddrPort{realA, realB, realA} {
			c.Dest = dest
			a.capture(c)
			time.Sleep(time.Second)
			if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != dest || e.Flags&conntable.FlagInactive == 0 {
				t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, dest)
			}
			if want := max(1, 2*i+1); b.kernel.injections() != want {
				t.Errorf("%d injections, want %d", b.kernel.injections(), want)
			}
		}
	})
}

// Also if the kernel does not take it at once, or loses it.
func TestDatagramFlowMovesWhenTheKernelTakesIt(t *testing.T) {
	for what, x := range troubles {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, c := datagramPair(t, 30)
				c.Dest = realA
				a.capture(c)
				time.Sleep(time.Second)
				b.kernel.with(x.begin)
				c.Dest = realB
				a.capture(c)
				time.Sleep(500 * time.Millisecond)
				b.kernel.with(x.end)
				time.Sleep(lostEvery + injectAgain)
				if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB || e.Flags&conntable.FlagInactive == 0 {
					t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, realB)
				}
			})
		})
	}
}

// Also if the peer learns of the new real server later.
func TestDatagramFlowMovesOnceItsServerIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := datagramPair(t, 29)
		b.kernel.forget(datagramTarget(realB))
		time.Sleep(servicesEvery + time.Second)
		for _, c.Dest = range []netip.AddrPort{realA, realB} {
			a.capture(c)
			time.Sleep(time.Second)
		}
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realA {
			t.Errorf("the peer's kernel has %+v, %v; want what it had", e, ok)
		}
		b.kernel.learn(datagramTarget(realB))
		time.Sleep(servicesEvery + 500*time.Millisecond) // before two passes of the audit
		if e, ok := b.kernel.entry(c.Key); !ok || e.Dest != realB || e.Flags&conntable.FlagInactive == 0 {
			t.Errorf("the peer's kernel has %+v, %v; want an inactive one to %v", e, ok, realB)
		}
	})
}

// However many move, what is remembered of them is bounded, and forgotten when
// it was told.
func TestMovedIsBounded(t *testing.T) {
	var m moved
	for i := range maxMoved + 2 {
		m.note(tcp(i, 0, 0).Key)
	}
	last := tcp(maxMoved+1, 0, 0).Key
	if len(m.keys) > maxMoved || !m.take(&last) || m.take(&last) || len(m.keys) != 1 {
		t.Errorf("%d are remembered", len(m.keys))
	}
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

// Connections that this director told of before a power cut, and whose real
// server it does not know yet, are not gone.
func TestHeldOfAnEarlierLifeIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(30)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		c := tcp(3, established, 900*time.Second)
		b.capture(c)
		time.Sleep(time.Second)
		b.stop()
		target := Target{Virtual: vip, Protocol: 6, Dest: c.Dest}
		k := newFakeKernel()
		k.forget(target)
		b = start(t, network, 2, k)
		time.Sleep((missedOften + 3) * auditEvery)
		if st := b.Status(); !b.Synced() || st.Connections.Mirror != 1 || st.Audit.Held != 1 {
			t.Fatalf("%+v %+v, so this test shows nothing", st.Connections, st.Audit)
		}
		if found, err := b.reconcile(fakeTable{}, false); err != nil || found.Gone != 0 {
			t.Errorf("compared with the module's table: %+v, %v", found, err)
		}
		time.Sleep(time.Second)
		if _, ok := a.kernel.entry(c.Key); !ok || b.Status().Audit.Gone != 0 {
			t.Errorf("deleted at the peer: %v, %+v", !ok, b.Status().Audit)
		}
		k.learn(target)
		time.Sleep(servicesEvery + time.Second)
		if _, ok := k.entry(c.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
	})
}

// A connection whose real server is unknown waits for it.
func TestHeldUntilTheRealServerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, 26)
		target := Target{Virtual: vip, Protocol: 6, Dest: realB}
		b.kernel.forget(target)
		time.Sleep(servicesEvery + time.Second)
		toA, toB := tcp(2, established, 900*time.Second), tcp(3, established, 900*time.Second)
		a.capture(toA)
		a.capture(toB)
		time.Sleep(12 * time.Second)
		if _, ok := b.kernel.entry(toA.Key); !ok {
			t.Error("the connection to the known real server was not injected")
		}
		if _, ok := b.kernel.entry(toB.Key); ok {
			t.Error("a connection to an unknown real server was injected")
		}
		if st := b.Status(); st.Kernel.HeldBack != 1 || st.Audit.Held != 1 || st.Connections.Mirror != 2 {
			t.Errorf("%+v %+v", st.Kernel, st.Audit)
		}
		before := b.kernel.injections()
		b.kernel.learn(target)
		time.Sleep(servicesEvery + 100*time.Millisecond)
		if _, ok := b.kernel.entry(toB.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
		if got := b.kernel.injections() - before; got != 1 || b.Status().Kernel.Reinjected != 1 {
			t.Errorf("told again %d times, counted %d; want 1", got, b.Status().Kernel.Reinjected)
		}
	})
}

// So is what a peer found in its kernel, and never told.
func TestHeldOfAPeersFoundUntilTheRealServerAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(34)
		c := tcp(3, established, 900*time.Second)
		c.Dest = realB
		ka, kb := newFakeKernel(), newFakeKernel()
		ka.found = []conntable.Connection{c}
		target := Target{Virtual: vip, Protocol: 6, Dest: realB}
		kb.forget(target)
		start(t, network, 1, ka)
		start(t, network, 2, kb)
		time.Sleep(4 * time.Second)
		if _, ok := kb.entry(c.Key); ok {
			t.Fatal("a connection to an unknown real server was injected")
		}
		kb.learn(target)
		time.Sleep(servicesEvery + 100*time.Millisecond)
		if _, ok := kb.entry(c.Key); !ok {
			t.Error("not injected when the real server appeared")
		}
	})
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

// The audit takes its share of a core and no more, whatever it has to read.
func TestPacerKeepsToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used time.Duration
		p := newPacer(0.02, time.Second, func() time.Duration { return used })
		p.start()
		start := time.Now()
		for range 10_000 {
			if !p.afford(t.Context(), 0) {
				t.Fatal("ended")
			}
			used += 7 * time.Millisecond
		}
		took := time.Since(start)
		if most := time.Duration(0.02*float64(took)) + time.Second + 7*time.Millisecond; used > most {
			t.Errorf("%v of CPU in %v; want at most %v", used, took, most)
		}
		if took > time.Duration(float64(used)/0.019) {
			t.Errorf("%v of CPU took %v: the share is not used", used, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if p.afford(ctx, time.Second) {
			t.Error("afford goes on without its context")
		}
	})
}

func TestSeenForgetsNothing(t *testing.T) {
	const n = 20000
	s := newSeen(n)
	for i := range n {
		k := tcp(i, 0, 0).Key
		s.add(&k)
	}
	wrong := 0
	for i := range n {
		k, other := tcp(i, 0, 0).Key, tcp(n+i, 0, 0).Key
		if !s.has(&k) {
			t.Fatalf("%v was added", k)
		}
		if s.has(&other) {
			wrong++
		}
	}
	if wrong > n/50 {
		t.Errorf("%d of %d keys that were never added are claimed", wrong, n)
	}
}
