package syncd

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer"
	"saru/syncproto/peer/peertest"
)

// synced starts nodes 1 to n, of which the first has so many connections, and
// waits until all are synced.
func synced(t *testing.T, network *peertest.Network, n, conns int) []*node {
	t.Helper()
	var nodes []*node
	for i := range n {
		nodes = append(nodes, start(t, network, i+1, newFakeKernel()))
	}
	time.Sleep(3 * time.Second)
	for i := range conns {
		nodes[0].capture(tcp(i, established, 900*time.Second))
	}
	time.Sleep(5 * time.Second)
	for _, nd := range nodes {
		if !nd.Synced() || nd.table.Len() != conns {
			t.Fatalf("%s: synced %v, %d connections", nd.node, nd.Synced(), nd.table.Len())
		}
	}
	return nodes
}

// peerOf is what n knows of the peer called name.
func (n *node) peerOf(t *testing.T, name string) (p peer.PeerStatus) {
	t.Helper()
	for _, p := range n.Status().Peers {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("%s does not know %s", n.node, name)
	return p
}

// A joiner pulls the table once, however many hold it, from who does least.
func TestJoinerPullsFromTheLeastLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(11)
		const conns = 5000
		nodes := synced(t, network, 3, conns)
		// d1 and d2 tell news all the time, d3 none.
		state := uint16(established)
		busy := func() {
			state = established + closeWait - state
			for i := range 50 {
				nodes[0].capture(tcp(i, state, 900*time.Second))
				nodes[1].capture(tcp(100+i, state, 900*time.Second))
			}
		}
		for range 20 {
			busy()
			time.Sleep(100 * time.Millisecond)
		}
		joiner := start(t, network, 4, newFakeKernel())
		for range 50 {
			busy()
			time.Sleep(100 * time.Millisecond)
		}
		if !joiner.Synced() || joiner.kernel.len() != conns {
			t.Errorf("synced %v, %d of %d connections in the kernel", joiner.Synced(), joiner.kernel.len(), conns)
		}
		for name, want := range map[string]bool{"d1": false, "d2": false, "d3": true} {
			if p := joiner.peerOf(t, name); p.Pulled > 0 != want || want && p.Pulled != conns {
				t.Errorf("pulled %d records from %s", p.Pulled, name)
			}
		}
	})
}

// A peer that is heard only when the table has come from another one keeps no
// joiner from being synced, and is not pulled from again.
func TestJoinerHearsAPeerLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(16)
		const conns = 500
		nodes := synced(t, network, 2, conns)
		late := nodes[0]
		network.SetCut(late.net, network.Node(3), true) // before it is there: d1 may speak at any time
		joiner := start(t, network, 3, newFakeKernel())
		time.Sleep(time.Second)
		if p := joiner.peerOf(t, "d2"); p.Pulled != conns || joiner.Synced() {
			t.Fatalf("synced %v, %d of %d records pulled", joiner.Synced(), p.Pulled, conns)
		}
		network.SetCut(late.net, joiner.net, false)
		time.Sleep(5 * time.Second)
		if !joiner.Synced() || joiner.kernel.len() != conns {
			t.Errorf("synced %v, %d of %d connections in the kernel", joiner.Synced(), joiner.kernel.len(), conns)
		}
		if p := joiner.peerOf(t, "d1"); p.State != "up" || p.Pulled != 0 {
			t.Errorf("the late one: %+v", p)
		}
	})
}

// A stream that breaks is gone on with, and not begun anew.
func TestPullGoesOnAfterABreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(12)
		const conns = 40_000
		nodes := synced(t, network, 1, conns)
		network.BreakStream(200_000)
		joiner := start(t, network, 2, newFakeKernel())
		time.Sleep(500 * time.Millisecond)
		for i := range 100 { // between the two streams
			nodes[0].capture(tcp(i, finWait, 120*time.Second))
		}
		time.Sleep(6 * time.Second)
		if !network.Broken() {
			t.Error("the stream did not break, so this test shows nothing")
		}
		p := joiner.peerOf(t, "d1")
		if !joiner.Synced() || joiner.table.Len() != conns || p.DigestEqual == nil || !*p.DigestEqual {
			t.Errorf("synced %v, %d of %d connections, %+v", joiner.Synced(), joiner.table.Len(), conns, p)
		}
		// What came between the last mark and the break comes again.
		if p.Pulled < conns || p.Pulled > conns+2*4096 {
			t.Errorf("%d records pulled for %d connections", p.Pulled, conns)
		}
		if p.PullDone != uint64(conns) || p.PullTotal != conns {
			t.Errorf("shown as %d of %d", p.PullDone, p.PullTotal)
		}
	})
}

// But not if everything was asked for meanwhile.
func TestPullBeginsAnewWhenAllIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(12)
		const conns = 40_000
		synced(t, network, 1, conns)
		network.BreakStream(200_000)
		network.SetStreamDelay(50 * time.Millisecond)
		joiner := start(t, network, 2, newFakeKernel())
		for joiner.table.Len() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		joiner.session.PullAll()
		for !network.Broken() {
			time.Sleep(10 * time.Millisecond)
		}
		before := joiner.peerOf(t, "d1").PullDone
		if before == 0 {
			t.Fatal("nothing came before the break, so this test shows nothing")
		}
		time.Sleep(10 * time.Second)
		if p := joiner.peerOf(t, "d1"); !joiner.Synced() || p.Pulled < before+conns {
			t.Errorf("synced %v; %d records pulled, %d of them before the break; want all %d after it", joiner.Synced(), p.Pulled, before, conns)
		}
	})
}

// Nor is it enough if more news was lost during it than can be told again.
func TestNotSyncedWithoutNewsLostDuringThePull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 4500 // datagrams: more than the ring keeps
		network, source, joiner := slowPull(t)
		network.SetCut(source.net, joiner.net, true)
		for i := range many {
			source.capture(tcp(i, finWait, 120*time.Second))
			time.Sleep(6 * time.Millisecond)
		}
		network.SetCut(source.net, joiner.net, false)
		time.Sleep(time.Second) // it is heard of again
		if p := joiner.peerOf(t, "d1"); p.State != "pulling" || p.PullDone >= slowConns {
			t.Fatalf("the pull was over before the news came, so this test shows nothing: %+v", p)
		}
		network.SetStreamDelay(0)
		for range 1000 {
			if joiner.Synced() {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		old := 0
		for i := range many {
			var r conntable.Record
			if k := tcp(i, 0, 0).Key; !joiner.table.Lookup(k, &r) || r.State != finWait {
				old++
			}
		}
		if !joiner.Synced() || old > 0 {
			t.Errorf("synced %v, without %d of %d pieces of news; %+v", joiner.Synced(), old, many, joiner.peerOf(t, "d1"))
		}
	})
}

// A source of which no datagram comes any more, but all that was asked for, is
// waited for.
func TestNotSyncedBeforeTheStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, source, joiner := slowPull(t)
		network.SetCut(source.net, joiner.net, true)
		for range 10_000 {
			if joiner.Synced() {
				break
			}
			time.Sleep(100 * time.Millisecond)
			if joiner.peerOf(t, "d1").HeardMS > 60_000 {
				network.SetStreamDelay(0)
			}
		}
		if p := joiner.peerOf(t, "d1"); !joiner.Synced() || joiner.table.Len() != slowConns || p.HeardMS < 60_000 {
			t.Errorf("synced %v with %d of %d connections; %+v", joiner.Synced(), joiner.table.Len(), slowConns, p)
		}
	})
}

const slowConns = 40_000

// slowPull starts a joiner that pulls slowConns connections for minutes.
func slowPull(t *testing.T) (network *peertest.Network, source, joiner *node) {
	network = peertest.New(12)
	source = synced(t, network, 1, slowConns)[0]
	network.SetStreamDelay(50 * time.Millisecond) // it is not to time out before it begins
	joiner = start(t, network, 2, newFakeKernel())
	for joiner.table.Len() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	network.SetStreamDelay(6 * time.Second)
	return network, source, joiner
}

// A source that is restarted, and takes the joiner's stream before it says that
// it has another life, is pulled from in that.
func TestPullOfARestartedSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(24)
		const conns = 3000
		source := synced(t, network, 1, conns)[0]
		joiner := start(t, network, 2, newFakeKernel())
		time.Sleep(50 * time.Millisecond) // before it chooses whom to pull from
		source.stop()
		network.SetStreamDelay(100 * time.Millisecond)
		k := newFakeKernel()
		k.slow = 100 * time.Millisecond // a read of the table: nothing is accepted for 2 s
		for i := range conns {
			k.found = append(k.found, tcp(i, established, 900*time.Second))
		}
		again := start(t, network, 1, k)
		time.Sleep(30 * time.Second)
		if !again.Synced() || !joiner.Synced() || joiner.table.Len() != conns {
			t.Errorf("source synced %v, joiner %v with %d of %d connections; %+v",
				again.Synced(), joiner.Synced(), joiner.table.Len(), conns, joiner.peerOf(t, "d1"))
		}
	})
}

// While a slow pull goes on, news travels as ever, from the source to the
// joiner and to others, and the joiner says how far it is.
func TestLiveNewsDuringAPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(13)
		const conns = 20_000
		nodes := synced(t, network, 2, conns)
		network.SetStreamDelay(300 * time.Millisecond)
		joiner := start(t, network, 3, newFakeKernel())
		time.Sleep(2500 * time.Millisecond)
		var before uint64
		for i := range 10 {
			c := tcp(conns+i, established, 900*time.Second)
			nodes[0].capture(c)
			time.Sleep(50 * time.Millisecond)
			for _, n := range []*node{nodes[1], joiner} {
				if _, ok := n.kernel.get(c.Key); !ok {
					t.Fatalf("%s's kernel was not told within 50 ms", n.node)
				}
			}
			time.Sleep(450 * time.Millisecond)
			p := joiner.peerOf(t, "d1")
			if joiner.peerOf(t, "d2").Pulled+joiner.peerOf(t, "d2").PullDone > 0 {
				p = joiner.peerOf(t, "d2")
			}
			if i < 5 && (p.State != "pulling" || joiner.Synced() || p.PullTotal < conns || p.PullDone < before || p.PullDone == 0) {
				t.Fatalf("synced %v, %+v", joiner.Synced(), p)
			}
			before = p.PullDone
		}
		network.SetStreamDelay(0)
		time.Sleep(5 * time.Second)
		if !joiner.Synced() || joiner.kernel.len() != conns+10 {
			t.Errorf("synced %v, %d connections in the kernel", joiner.Synced(), joiner.kernel.len())
		}
	})
}

// Who takes nothing of what it asked for costs its source nothing.
func TestStalledPullerBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(14)
		nodes := synced(t, network, 2, 20_000)
		network.SetStreamDelay(time.Hour)
		joiner := start(t, network, 3, newFakeKernel())
		for i := range 100 {
			c := tcp(20_000+i, established, 900*time.Second)
			nodes[0].capture(c)
			time.Sleep(20 * time.Millisecond)
			if _, ok := nodes[1].kernel.get(c.Key); !ok {
				t.Fatal("the peer was not told within 20 ms")
			}
		}
		if joiner.Synced() {
			t.Error("synced without having pulled")
		}
	})
}

// A joiner is not synced while a peer that holds the cluster's state has what
// its source has not.
func TestSyncedOnlyWhenTablesAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(15)
		nodes := synced(t, network, 2, 100)
		network.SetCut(nodes[0].net, nodes[1].net, true)
		x := tcp(1000, established, 900*time.Second)
		nodes[1].capture(x)
		for range 20 { // d1 does least, and so is the source
			nodes[1].capture(tcp(1, established, 900*time.Second))
			time.Sleep(100 * time.Millisecond)
		}
		joiner := start(t, network, 3, newFakeKernel())
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if joiner.Synced() {
				break
			}
		}
		if _, ok := joiner.kernel.get(x.Key); !joiner.Synced() || !ok {
			t.Errorf("synced %v, kernel has what only the other peer held: %v", joiner.Synced(), ok)
		}
		if p := joiner.peerOf(t, "d1"); p.Pulled != 100 {
			t.Errorf("%d records pulled from d1, want it to be the source", p.Pulled)
		}
		if d := time.Since(joiner.started); d > agreePatience {
			t.Errorf("it took %v", d)
		}
	})
}

// Nor while nothing could be pulled, though datagrams come through.
func TestNotSyncedWithoutWhatPeersHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(16)
		synced(t, network, 2, 100)
		network.SetNoStreams(true)
		joiner := start(t, network, 3, newFakeKernel())
		time.Sleep(5 * agreePatience)
		if joiner.Synced() {
			t.Errorf("synced with %d of 100 connections", joiner.table.Len())
		}
		for range 10 { // however long it takes, and if they fall silent now and then
			for _, cut := range []bool{true, false} {
				for i := range 2 {
					network.SetCut(network.Get(i+1), joiner.net, cut)
				}
				time.Sleep(20 * time.Second)
			}
			if joiner.Synced() {
				t.Fatalf("synced with %d of 100 connections, %v after its start", joiner.table.Len(), time.Since(joiner.started))
			}
		}
		network.SetNoStreams(false)
		time.Sleep(15 * time.Second)
		if !joiner.Synced() || joiner.table.Len() != 100 {
			t.Errorf("synced %v with %d of 100 connections", joiner.Synced(), joiner.table.Len())
		}
	})
}

// Nor with a part of what its source holds, when that falls silent; but it does
// not wait for ever.
func TestNotSyncedByAPart(t *testing.T) {
	const conns = 40_000
	join := func(t *testing.T, network *peertest.Network, source *node) *node {
		network.BreakStream(200_000)
		network.SetStreamDelay(100 * time.Millisecond)
		joiner := start(t, network, 2, newFakeKernel())
		for joiner.table.Len() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		network.SetCut(source.net, joiner.net, true)
		network.SetNoStreams(true) // after the one that breaks
		time.Sleep(20 * time.Second)
		network.SetStreamDelay(0)
		if n := joiner.table.Len(); joiner.Synced() || n >= conns {
			t.Fatalf("synced %v, with %d of %d connections", joiner.Synced(), n, conns)
		}
		return joiner
	}
	t.Run("it comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := peertest.New(21)
			source := synced(t, network, 1, conns)[0]
			joiner := join(t, network, source)
			network.SetCut(source.net, joiner.net, false)
			network.SetNoStreams(false)
			time.Sleep(10 * time.Second)
			if n := joiner.table.Len(); !joiner.Synced() || n != conns {
				t.Errorf("synced %v, with %d of %d connections", joiner.Synced(), n, conns)
			}
		})
	})
	t.Run("it comes back with another life", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := peertest.New(22)
			source := synced(t, network, 1, conns)[0]
			joiner := join(t, network, source)
			source.stop()
			network.SetNoStreams(false)
			k := newFakeKernel()
			k.slow = 20 * time.Millisecond // a read of the table
			for i := range conns {
				k.found = append(k.found, tcp(i, established, 900*time.Second))
			}
			again := start(t, network, 1, k)
			network.SetCut(again.net, joiner.net, false)
			for !joiner.Synced() {
				time.Sleep(10 * time.Millisecond)
			}
			if n := joiner.table.Len(); !again.Synced() || n != conns {
				t.Errorf("synced, as its source is: %v, with %d of %d connections", again.Synced(), n, conns)
			}
		})
	})
	t.Run("it does not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := peertest.New(23)
			joiner := join(t, network, synced(t, network, 1, conns)[0])
			time.Sleep(20 * time.Second)
			if !joiner.Synced() {
				t.Error("not synced 40 s after its source died")
			}
		})
	})
}

// A connection that closed, and was forgotten by all who heard of it, does not
// come back with a node that did not.
func TestClosedDuringACutStaysClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(17)
		nodes := synced(t, network, 3, 0)
		cut := func(v bool) {
			network.SetCut(nodes[0].net, nodes[1].net, v)
			network.SetCut(nodes[2].net, nodes[1].net, v)
		}
		c := tcp(1, established, 900*time.Second)
		nodes[0].capture(c)
		time.Sleep(time.Second)
		cut(true)
		c.State, c.Timeout, c.Flags = finWait, 120*time.Second, c.Flags|conntable.FlagInactive
		nodes[0].capture(c)
		nodes[0].kernel.serve(c)
		time.Sleep(200 * time.Second)
		if nodes[0].table.Len() != 0 || nodes[1].table.Len() != 1 {
			t.Fatalf("%d connections and %d, so this test shows nothing", nodes[0].table.Len(), nodes[1].table.Len())
		}
		cut(false)
		time.Sleep(15 * time.Second)
		for _, n := range nodes {
			if _, ok := n.kernel.entry(c.Key); ok || n.table.Len() != 0 {
				t.Errorf("%s: %d connections; in its kernel: %v", n.node, n.table.Len(), ok)
			}
		}
	})
}

// But what a peer knows of an earlier life is not over for that, though its
// versions seem to be of this one, since the wall clock fell behind them, and
// though this life was synced before it heard of them.
func TestEarlierLifeAheadIsNotClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(18)
		nodes := synced(t, network, 2, 0)
		nodes[0].clock.Observe(nodes[0].clock.Now() + uint64(time.Minute/time.Microsecond))
		c := tcp(1, established, 900*time.Second)
		nodes[0].capture(c)
		time.Sleep(time.Second)
		nodes[0].stop()
		network.SetCut(nodes[0].net, nodes[1].net, true)
		again := start(t, network, 1, newFakeKernel())
		network.SetCut(again.net, nodes[1].net, true)
		time.Sleep(10 * time.Second)
		if !again.Synced() {
			t.Fatal("not synced alone, so this test shows nothing")
		}
		network.SetCut(again.net, nodes[1].net, false)
		time.Sleep(15 * time.Second)
		if _, ok := nodes[1].kernel.entry(c.Key); !ok || nodes[1].table.Len() != 1 {
			t.Errorf("the peer has %d connections; in its kernel: %v", nodes[1].table.Len(), ok)
		}
	})
}

// Nor what another director told that bears the same name.
func TestNamesakesCloseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(19)
		third := start(t, network, 3, newFakeKernel())
		var namesakes [2]*node
		for i := range namesakes {
			k := newFakeKernel()
			namesakes[i] = startOn(t, network.Node(1+i), 1, k, testKeys)
		}
		time.Sleep(5 * time.Second)
		for i := range 20 {
			namesakes[i%2].capture(tcp(i, established, 900*time.Second))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		for i := range 20 {
			if _, ok := third.kernel.entry(tcp(i, established, 0).Key); !ok {
				t.Errorf("connection %d was deleted", i)
			}
		}
		if n := third.table.Tombstones(); n > 0 {
			t.Errorf("%d connections were told to be over", n)
		}
	})
}

// Entries that were deleted while a node was cut off for a day do not come
// back with it, and it learns what is new.
func TestDeadForADay(t *testing.T) {
	day := 24 * time.Hour
	if testing.Short() {
		day = 2 * time.Hour // a day of heartbeats takes half a minute
	}
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(16)
		nodes := synced(t, network, 2, 100)
		long := 2 * day
		kept, gone := tcp(5000, established, long), tcp(5001, established, long)
		nodes[0].capture(kept)
		nodes[0].capture(gone)
		time.Sleep(time.Second)
		network.SetCut(nodes[0].net, nodes[1].net, true)
		time.Sleep(day / 2)
		if err := nodes[0].kernel.Delete(gone); err != nil {
			t.Fatal(err)
		}
		if got := nodes[0].table.Delete(gone.Key, nodes[0].clock.Next(), conntable.ToPeers); got.Outcome != conntable.Updated {
			t.Fatalf("delete: %v", got.Outcome)
		}
		fresh := tcp(6000, established, long)
		nodes[0].capture(fresh)
		time.Sleep(day / 2)
		network.SetCut(nodes[0].net, nodes[1].net, false)
		time.Sleep(10 * time.Second)
		for _, n := range nodes {
			var r conntable.Record
			if n.table.Lookup(gone.Key, &r) && !r.Deleted {
				t.Errorf("%s: the deleted connection is back", n.node)
			}
			for _, c := range []conntable.Connection{kept, fresh} {
				if !n.table.Lookup(c.Key, &r) || r.Deleted {
					t.Errorf("%s: connection %v is not there", n.node, c.Client)
				}
			}
			if n.table.Len() != 2 {
				t.Errorf("%s: %d connections, want 2", n.node, n.table.Len())
			}
			for _, p := range n.Status().Peers {
				if p.DigestEqual == nil || !*p.DigestEqual {
					t.Errorf("%s of %s: %+v", n.node, p.Name, p)
				}
			}
		}
	})
}

// Loss of 5 % of all datagrams, and a blackout of one second in the middle of
// it: from its end on it takes how long until all hold the same.
func TestConvergence(t *testing.T) {
	worst := time.Duration(0)
	for seed := uint64(1); seed <= 5; seed++ {
		worst = max(worst, convergence(t, seed, 0.05, time.Second))
	}
	t.Logf("equal after %v at most", worst)
	if worst > 2*time.Second {
		t.Errorf("equal only after %v, want 2 s at most", worst)
	}
}

// convergence runs three nodes that tell 2,000 updates a second each, and
// returns how long after a blackout their tables were the same as of its end.
func convergence(t testing.TB, seed uint64, loss float64, blackout time.Duration) (took time.Duration) {
	run := func(t *testing.T) {
		network := peertest.New(seed)
		nodes := synced(t, network, 3, 0)
		network.SetLoss(loss)
		i := 0
		tell := func(d time.Duration) {
			for range d / (5 * time.Millisecond) {
				for j, n := range nodes {
					for range 10 {
						i++
						// Another state each time that a connection is
						// told of, else it would not be told to the peers.
						state := uint16(established)
						if i/3000%2 == 1 {
							state = finWait
						}
						n.capture(tcp(i%3000*3+j, state, 900*time.Second))
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		tell(time.Second)
		network.SetLoss(1)
		tell(blackout)
		network.SetLoss(loss)
		end, horizon := time.Now(), nodes[0].clock.Now()
		if same(nodes, horizon) {
			t.Fatal("the blackout lost nothing")
		}
		for !same(nodes, horizon) {
			tell(50 * time.Millisecond)
			if took = time.Since(end); took > time.Minute {
				t.Fatal("not equal in a minute")
			}
		}
	}
	if tt, ok := t.(*testing.T); ok {
		tt.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { synctest.Test(t, run) })
	}
	return took
}

// same reports whether all tables had the same at horizon, as far as they know
// by now. It looks at copies, since digests of the past are not to be had.
func same(nodes []*node, horizon uint64) bool {
	var sums [3]conntable.Digests
	for i, n := range nodes {
		copied := conntable.New(1 << 20)
		n.table.Each(func(r *conntable.Record) bool {
			if r.Version.Clock <= horizon {
				copied.Apply(r, 0)
			}
			return true
		})
		copied.Digests(horizon+conntable.HorizonTick, &sums[i])
	}
	return sums[0] == sums[1] && sums[1] == sums[2]
}
