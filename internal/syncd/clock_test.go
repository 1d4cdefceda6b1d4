package syncd

import (
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// A director's wall clock jumps hours ahead while all tell news: nothing dies
// before its time, nothing is lost, the tables stay the same, and who was told
// last wins as ever.
func TestClockJumpsHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(41)
		const conns = 300
		nodes := synced(t, network, 3, conns)
		tell := func(state uint16) {
			for i := range conns {
				nodes[i%3].capture(tcp(i, state, 900*time.Second))
				time.Sleep(time.Millisecond)
			}
		}
		// All that is told from here on has later versions.
		nodes[1].clock.Observe(nodes[1].clock.Now() + uint64(5*time.Hour/time.Microsecond))
		tell(finWait)
		time.Sleep(time.Second)
		tell(established)
		time.Sleep(10 * time.Second)
		for _, n := range nodes {
			if n.table.Len() != conns {
				t.Errorf("%s: %d of %d connections", n.node, n.table.Len(), conns)
			}
			n.table.Each(func(r *conntable.Record) bool {
				if r.State != established || r.Remaining < 880*time.Second {
					t.Errorf("%s: state %d, %v remain", n.node, r.State, r.Remaining)
				}
				return !t.Failed()
			})
			for _, p := range n.Status().Peers {
				if p.DigestEqual == nil || !*p.DigestEqual {
					t.Errorf("%s of %s: %+v", n.node, p.Name, p)
				}
			}
			if ahead := int64(n.clock.Now()) - time.Now().UnixMicro(); ahead < int64((5*time.Hour-time.Second)/time.Microsecond) {
				t.Errorf("%s's clock did not follow", n.node)
			}
		}
		// And one that comes back with a clock that is hours behind: it
		// follows before it tells anything of its own.
		nodes[2].stop()
		nodes[2] = start(t, network, 3, newFakeKernel())
		time.Sleep(8 * time.Second)
		if n := nodes[2].kernel.len(); n != conns {
			t.Errorf("its kernel was told %d of %d connections", n, conns)
		}
		closed := tcp(2, finWait, 120*time.Second)
		nodes[2].capture(closed)
		time.Sleep(time.Second)
		var r conntable.Record
		if !nodes[0].table.Lookup(closed.Key, &r) || r.State != finWait {
			t.Errorf("what it told lost against what was told before: %+v", r)
		}
	})
}
