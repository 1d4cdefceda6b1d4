package membership

import (
	"testing"
	"time"

	"saru/partition"
)

// refusedFor returns for how long after it read a holder's last heartbeat a
// voter refuses the holder's bucket to another.
func refusedFor(mut mutant) time.Duration {
	c := New(Config{
		Node: "w", Incarnation: 9, Host: 9, Cluster: "c", Share: 1, Witness: true, Lease: simLease, Interval: simInterval, Arm: simArm, mutant: mut,
	}, 0)
	var now, read time.Duration
	var sent Echo
	tick := func() {
		now += simInterval
		c.Tick(now)
		for _, a := range c.Actions() {
			if hb, ok := a.Message.(*Heartbeat); ok {
				sent = Echo{c.id, 9, hb.N}
			}
		}
	}
	claim := func(name string, inc, n uint64, late time.Duration) (granted bool) {
		heard := sent
		now += late // it took so long, and the voter has stalled
		c.Receive(now, &Heartbeat{
			Header: Header{1, ClusterID("c"), ID(name), inc}, N: n, Lease: simLease, Shape: 7, State: Ready, Words: 1,
			Open: partition.SetOf(3), Name: name, Heard: []Echo{heard},
		})
		for _, a := range c.Actions() {
			if ack, ok := a.Message.(*Ack); ok && ack.N == n && ack.To == ID(name) {
				granted = ack.Granted.Has(3)
			}
		}
		return granted
	}
	for range 10 { // past the silence of its start
		tick()
	}
	if !claim("holder", 1, 1, simInterval*9/10) {
		return 0
	}
	read = now
	for n := uint64(1); n < 100; n++ {
		tick()
		if claim("taker", 2, n, 0) {
			return now - read
		}
	}
	return now - read
}

// A promise outlasts the lease of a holder whose heartbeat was read late: it
// counts from the reading (V2).
func TestPromisesCountFromReading(t *testing.T) {
	if d := refusedFor(0); d < Watch(simLease) || d > Watch(simLease)+2*simInterval {
		t.Errorf("a voter refuses for %v, want %v", d, Watch(simLease))
	}
	if d := refusedFor(watchFromSending); d >= Watch(simLease) {
		t.Errorf("a voter that counts from the sending refuses for %v", d)
	}
}

// until lets time pass until f holds, which it soon must.
func (w *world) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := w.now + 5*time.Second; !f(); w.run(w.now + time.Millisecond) {
		if w.now > end {
			t.Fatalf("not %s\n%s", what, w.dump())
		}
	}
}

// grantedLate makes a world in which a holder's last heartbeat answers what the
// voter said some time before, and its grant is confirmed as late as it can be,
// while somebody else claims the same buckets from the voter. Random worlds do
// that too seldom.
func grantedLate(t *testing.T, mut mutant) *world {
	t.Helper()
	w := newWorld(7, 2, faults{majority: true, witnesses: 1}, mut)
	w.after(0, w.watch)
	w.settle(t, 5*time.Second)
	holder, taker, voter := w.nodes[0], w.nodes[1], w.nodes[2]
	w.isolate(holder, taker, true)
	w.settle(t, time.Second)
	sends := func(n *simNode) func() bool {
		last := n.core.n
		return func() bool { return n.core.n > last }
	}
	w.until(t, "heard by the holder", sends(voter))
	w.run(w.now + time.Millisecond)
	w.lose = func(from, to *simNode, b []byte) bool {
		return from == voter && to == holder && Type(b[0]) == TypeHeartbeat
	}
	w.run(w.now + simInterval*18/10)
	w.until(t, "claimed by the holder", sends(holder))
	holder.stalled = w.now + simArm*88/100
	w.run(w.now + 3*time.Millisecond) // the answer waits in its socket
	w.isolate(holder, voter, true)
	confirmed := holder.core.confirmed
	w.until(t, "confirmed", func() bool { return holder.core.confirmed > confirmed })
	holder.stalled = w.now + time.Second // it does not close by itself
	w.run(w.now + 2*time.Second)
	return w
}

func TestWatcherThatCountsFromSending(t *testing.T) {
	w := grantedLate(t, 0)
	if len(w.bad) > 0 {
		t.Fatalf("%v\n%s", w.bad, w.dump())
	}
	w.want(t, "the holder is cut off", 0, 16, 0)
	if w = grantedLate(t, watchFromSending); len(w.bad) == 0 {
		t.Errorf("the simulation does not see this error\n%s", w.dump())
	}
	t.Log(w.bad)
}
