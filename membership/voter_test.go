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
