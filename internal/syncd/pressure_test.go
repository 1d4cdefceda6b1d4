package syncd

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// What cannot wait comes first, each lane in order, all of it once, and who
// waits for what was pushed before is let go when that is done, and not before.
func TestQueueAgainstLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(nil, 0)
		var first, later, taken []conntable.Ref
		n := 0
		ref := func() conntable.Ref { n++; return conntable.Ref{} }
		finished := 0
		t.Repeat(map[string]func(*rapid.T){
			"push":      func(*rapid.T) { r := ref(); first = append(first, r); q.push(r) },
			"pushLater": func(*rapid.T) { r := ref(); later = append(later, r); q.pushLater(r) },
			"swap": func(t *rapid.T) {
				if len(taken) > 0 {
					return
				}
				got := q.swap(nil)
				want := len(first) + min(len(later), laterChunk)
				if len(got) != want {
					t.Fatalf("took %d, want %d", len(got), want)
				}
				taken = got
				first, later = nil, later[min(len(later), laterChunk):]
			},
			"finish": func(t *rapid.T) {
				if len(taken) == 0 {
					return
				}
				k := rapid.IntRange(1, len(taken)).Draw(t, "n")
				q.finish(k)
				taken = taken[k:]
				finished += k
			},
			"": func(t *rapid.T) {
				if q.idle() != (finished == n) || q.size() != len(first)+len(later) {
					t.Fatalf("idle %v with %d of %d done, %d wait", q.idle(), finished, n, q.size())
				}
			},
		})
	})
}

// Of those that wait none is dropped that waits for something, and who waits for
// others is let go when the rest of them is done, and not before.
func TestPrunedQueueAgainstLists(t *testing.T) {
	type item struct {
		ref  conntable.Ref
		dead bool // its entry waits for nothing
		done bool
	}
	table := conntable.New(1 << 20)
	fresh := 0
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(table, conntable.ToKernel)
		var lanes [2][]*item
		var all, taken []*item
		var waiters []waiter
		var before [][]*item // what each of them waits for
		put := func(lane int) conntable.Ref {
			fresh++
			r := conntable.Record{Connection: tcp(fresh, established, time.Hour), Remaining: time.Hour}
			r.Version = conntable.Version{Clock: conntable.LiveClock, Node: 1}
			x := &item{ref: table.Apply(&r, conntable.ToKernel).Ref}
			all, lanes[lane] = append(all, x), append(lanes[lane], x)
			return x.ref
		}
		t.Repeat(map[string]func(*rapid.T){
			"push":      func(*rapid.T) { q.push(put(0)) },
			"pushLater": func(*rapid.T) { q.pushLater(put(1)) },
			"die": func(t *rapid.T) {
				lane := rapid.IntRange(0, 1).Draw(t, "lane")
				if n := len(lanes[lane]); n > 0 {
					x := lanes[lane][rapid.IntRange(0, n-1).Draw(t, "i")]
					x.dead = true
					var r conntable.Record
					table.Take(x.ref, conntable.ToKernel, &r)
				}
			},
			"prune": func(t *rapid.T) {
				q.mu.Lock()
				q.many = 0
				q.prune()
				q.mu.Unlock()
				for i := range lanes {
					lanes[i] = slices.DeleteFunc(lanes[i], func(x *item) bool { x.done = x.done || x.dead; return x.dead })
				}
			},
			"wait": func(*rapid.T) {
				if q.idle() {
					return
				}
				w := waiter{q.first.pushed, q.later.pushed, make(chan struct{})}
				q.waiters, waiters = append(q.waiters, w), append(waiters, w)
				before = append(before, slices.Clone(all))
			},
			"swap": func(t *rapid.T) {
				if len(taken) > 0 {
					return
				}
				n := min(len(lanes[1]), laterChunk)
				taken = append(lanes[0], lanes[1][:n]...)
				lanes[0], lanes[1] = nil, lanes[1][n:]
				got := q.swap(nil)
				if !slices.EqualFunc(got, taken, func(r conntable.Ref, x *item) bool { return r == x.ref }) {
					t.Fatalf("took %v, want %v", got, taken)
				}
			},
			"finish": func(t *rapid.T) {
				k := rapid.IntRange(0, len(taken)).Draw(t, "n")
				for _, x := range taken[:k] {
					x.done = true
				}
				taken = taken[k:]
				q.finish(k)
			},
			"": func(t *rapid.T) {
				open := slices.ContainsFunc(all, func(x *item) bool { return !x.done })
				if q.idle() == open || q.size() != len(lanes[0])+len(lanes[1]) {
					t.Fatalf("idle %v, size %d; want %v, %v", q.idle(), q.size(), !open, lanes)
				}
				for i, w := range waiters {
					open := slices.ContainsFunc(before[i], func(x *item) bool { return !x.done })
					if goes := !slices.ContainsFunc(q.waiters, func(x waiter) bool { return x.done == w.done }); goes == open {
						t.Fatalf("let go: %v, while what it waits for is done: %v", goes, !open)
					}
				}
			},
		})
	})
}

// While the reader stands still and connections come and go, no more wait than
// are in the table, but for manyWait.
func TestQueueForgetsTheDead(t *testing.T) {
	table := conntable.New(1000)
	q := newQueue(table, conntable.ToKernel)
	r := conntable.Record{Connection: tcp(0, established, time.Hour)}
	r.Version.Node = 1
	const n = manyWait + manyWait/8
	for i := range n {
		r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 5000)
		r.Version.Clock = conntable.LiveClock + uint64(i)
		r.Remaining = time.Hour + time.Duration(i)*time.Second // the first to die makes room
		if res := table.Apply(&r, conntable.ToKernel); res.Queued != 0 {
			q.push(res.Ref)
		}
	}
	if table.Shed() < n/10*9 || q.size() > manyWait {
		t.Errorf("%d wait of a table of %d, of which %d were shed", q.size(), table.Len()+table.Tombstones(), table.Shed())
	}
	live := table.Len() + table.Tombstones()
	if got := len(table.TakeAll(q.swap(nil), conntable.ToKernel, nil)); got != live {
		t.Errorf("took %d of %d", got, live)
	}
}

// Flushed waits for both lanes.
func TestFlushedWaitsForRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(nil, 0)
		q.pushLater(conntable.Ref{})
		done := make(chan error, 1)
		go func() { done <- q.flushed(t.Context()) }()
		synctest.Wait()
		refs := q.swap(nil)
		q.push(conntable.Ref{}) // comes after, and is not waited for
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("let go before it was done")
		default:
		}
		q.finish(len(refs))
		synctest.Wait()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// An entry that overtakes itself again and again takes no more room than it
// has.
func TestOvertakingIsBounded(t *testing.T) {
	q := newQueue(nil, 0)
	for range 10 {
		q.pushLater(conntable.Ref{})
	}
	for range 1000 {
		q.overtake(conntable.Ref{})
	}
	if n := q.size(); n != 20 {
		t.Errorf("%d entries wait, want 20 at most", n)
	}
}

// A turnstile lets one through at a time, and nobody while it is shut.
type turnstile chan struct{}

func newTurnstile() turnstile { g := make(turnstile, 1); g.open(); return g }
func (g turnstile) open()     { g <- struct{}{} }
func (g turnstile) shut()     { <-g }

// An orderKernel notes in which order it is told, and waits at each batch while
// it is shut.
type orderKernel struct {
	*fakeKernel
	gate  turnstile
	order []conntable.Key
}

func (k *orderKernel) Inject(conns []conntable.Connection) error {
	k.gate.shut()
	defer k.gate.open()
	for i := range conns {
		k.order = append(k.order, conns[i].Key)
	}
	return k.fakeKernel.Inject(conns)
}

// takenBefore returns how many were told before key, since told.
func (k *orderKernel) takenBefore(key conntable.Key, told int) int {
	k.gate.shut()
	defer k.gate.open()
	for i, at := range k.order[told:] {
		if at == key {
			return i
		}
	}
	return -1
}

func (k *orderKernel) told() int {
	k.gate.shut()
	defer k.gate.open()
	return len(k.order)
}

const (
	pressed = 6000
	long    = 60 * time.Second
)

// refreshAll tells of all connections, as they are.
func (n *node) refreshAll() {
	for i := range pressed {
		n.capture(tcp(i, established, long))
	}
}

// freshAndClosing tells of a connection that is new and of one that closes.
func (n *node) freshAndClosing() (fresh, closing conntable.Key) {
	f, c := tcp(pressed, established, long), tcp(pressed-1, finWait, 120*time.Second)
	n.capture(f)
	n.capture(c)
	return f.Key, c.Key
}

// checkOrder looks at who came first after refreshes of all connections had
// waited: what is new, and what closes though it waited as a refresh.
func checkOrder(t *testing.T, k *orderKernel, told int, fresh, closing conntable.Key) {
	t.Helper()
	for what, key := range map[string]conntable.Key{"the new connection": fresh, "the closing one": closing} {
		if n := k.takenBefore(key, told); n < 0 || n > laterChunk+2*injectChunk {
			t.Errorf("%s came after %d others of %d", what, n, pressed)
		}
	}
	if n := k.told() - told; n < pressed {
		t.Errorf("%d were told in the end, want all %d", n, pressed)
	}
}

// While a kernel takes nothing, no more waits than there are connections,
// however often they are told.
func TestSlowKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &orderKernel{fakeKernel: newFakeKernel(), gate: newTurnstile()}
		network := peertest.New(31)
		a, b := start(t, network, 1, newFakeKernel()), startOn(t, network.Node(2), 2, k, testKeys)
		time.Sleep(3 * time.Second)
		a.refreshAll()
		time.Sleep(time.Second)
		told := k.told()
		k.gate.shut()
		for range 3 {
			time.Sleep(long/2 + time.Second) // else they are not worth telling
			a.refreshAll()
		}
		fresh, closing := a.freshAndClosing()
		time.Sleep(time.Second)
		if n := b.toKernel.size(); n > 2*pressed {
			t.Errorf("%d wait for the kernel, of %d connections", n, pressed)
		}
		k.gate.open()
		time.Sleep(time.Second)
		checkOrder(t, k, told, fresh, closing)
	})
}

// A fullLink sends nothing while it is shut.
type fullLink struct {
	*peertest.Node
	gate turnstile
}

func (l *fullLink) Broadcast(d [][]byte) error {
	l.gate.shut()
	defer l.gate.open()
	return l.Node.Broadcast(d)
}

func TestFullLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &orderKernel{fakeKernel: newFakeKernel(), gate: newTurnstile()}
		network := peertest.New(32)
		link := &fullLink{Node: network.Node(1), gate: newTurnstile()}
		a := startOn(t, link, 1, newFakeKernel(), testKeys)
		startOn(t, network.Node(2), 2, k, testKeys)
		time.Sleep(3 * time.Second)
		a.refreshAll()
		time.Sleep(long/2 + time.Second)
		told := k.told()
		link.gate.shut()
		for range 3 {
			a.refreshAll()
			time.Sleep(long/2 + time.Second)
		}
		fresh, closing := a.freshAndClosing()
		time.Sleep(time.Second)
		if n := a.toPeers.size(); n > 2*pressed {
			t.Errorf("%d wait for the link, of %d connections", n, pressed)
		}
		link.gate.open()
		time.Sleep(time.Second)
		checkOrder(t, k, told, fresh, closing)
	})
}

// A peer that hears only a part of what it is told holds all in the end, and
// does not ask for more than it can take for ever.
func TestSlowPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(33)
		nodes := synced(t, network, 2, 0)
		network.SetLoss(0.9)
		for round := range 20 {
			for i := range pressed {
				nodes[0].capture(tcp(i, uint16(1+3*(round%2)), long))
			}
			time.Sleep(100 * time.Millisecond)
		}
		network.SetLoss(0)
		time.Sleep(30 * time.Second)
		if n := nodes[1].table.Len(); n != pressed {
			t.Errorf("%d of %d connections", n, pressed)
		}
		// Seconds of it, and a pull takes no time here.
		if p := nodes[1].Status().Peers[0]; p.Pulled > 6*pressed {
			t.Errorf("%d records were pulled of a table of %d", p.Pulled, pressed)
		}
		for _, n := range nodes {
			p := n.Status().Peers[0]
			if p.DigestEqual == nil || !*p.DigestEqual || p.Missing > 0 {
				t.Errorf("%s: %+v", n.node, p)
			}
		}
	})
}
