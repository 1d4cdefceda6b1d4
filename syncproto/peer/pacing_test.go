package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// Gaps that keep coming do not put off the request for what is missing already.
func TestRequestsAreNotPutOff(t *testing.T) {
	start := time.Now()
	p := &peerState{}
	for i := range 4 {
		p.noteGap(1, start.Add(time.Duration(i)*missingWait/2))
	}
	if due := p.missingAt.Sub(start); due != missingWait {
		t.Errorf("what is missing is asked for after %v, want %v", due, missingWait)
	}
	// One that was asked for in vain may wait for long, and not what is new.
	p.missingAt = start.Add(missingMax)
	p.noteGap(1, start.Add(missingWait))
	if due := p.missingAt.Sub(start); due != 2*missingWait {
		t.Errorf("what is missing since %v is asked for after %v, want %v", missingWait, due, 2*missingWait)
	}
}

// A pull under way when gaps are given up, or one that is to be gone on with,
// may have passed what they told; one that begins after that has not.
func TestPullLacksWhatWasGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		p    peerState
		want bool
	}{
		"no pull":                     {peerState{}, false},
		"a pull under way":            {peerState{pulling: true}, true},
		"a pull that broke":           {peerState{pull: pullState{mark: []byte{1}}}, true},
		"a pull that is to begin yet": {peerState{pullWanted: true}, false},
	} {
		p := c.p
		for i := range uint64(maxSpans + 1) {
			if p.lacking {
				t.Fatalf("%s: lacks something after %d gaps", name, i)
			}
			p.gaps.heard(2*i + 1)
			p.noteGap(1, time.Now())
		}
		if !p.pullWanted || p.lacking != c.want || len(p.gaps.spans) != 0 {
			t.Errorf("%s: pull wanted %v, lacking %v, %d gaps; want a pull, %v and none", name, p.pullWanted, p.lacking, len(p.gaps.spans), c.want)
		}
	}
}

// A joiner has not pulled what a peer holds by a pull that lacks something: it
// pulls once more.
func TestPullThatLacksIsDoneAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		network := peertest.New(1)
		a, _ := session(t, kr, "d1", network.Node(1))
		b, _ := session(t, kr, "d2", network.Node(2))
		a.SetSynced(true)
		network.SetStreamDelay(200 * time.Millisecond)
		runAll(t, a, b)
		of := func() (p peerState) {
			time.Sleep(time.Millisecond)
			b.mu.Lock()
			defer b.mu.Unlock()
			if q := b.peers[a.self]; q != nil {
				p = *q
			}
			return p
		}
		for !of().pulling {
		}
		b.mu.Lock()
		b.peers[a.self].lacking = true
		b.mu.Unlock()
		for of().pulledAt.IsZero() {
		}
		if p := of(); p.pulled || !p.pulling {
			t.Errorf("after a pull that lacks something: pulled %v, another under way %v", p.pulled, p.pulling)
		}
		for range 10_000 {
			if of().pulled {
				return
			}
		}
		t.Error("never pulled whole")
	})
}

// A difference that comes after the tables had agreed again does not wait as
// long as the repairs before had come to wait.
func TestRepairsOfANewDifferenceAreSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := session(t, keys(t, keyA), "d1", peertest.New(1).Node(1))
		p := &peerState{repairWait: repairMax, repairAt: time.Now().Add(repairMax), unequal: unequalEnough}
		s.peers[conntable.NodeIDOf("d2")] = p
		p.digests.set(1, 7)
		s.mu.Lock()
		s.digests.set(1, 7)
		s.compareLocked(p)
		s.mu.Unlock()
		if p.equal == nil || !*p.equal || p.unequal != 0 {
			t.Fatalf("tables of one digest differ: %+v", p)
		}
		if wait := time.Until(p.repairAt); wait > repairAgain || p.repairWait != 0 {
			t.Errorf("the next repair waits for %v, and the one after it %v; want at most %v, as the first one", wait, p.repairWait, repairAgain)
		}
	})
}
