package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"saru/conntable"
)

// Two tables that differ at three horizons in a row differ by more than what is
// on its way. Then each node tells the other the digests of its slices at a
// horizon, and gets all that the other holds in those that differ; versions
// decide, as ever. One that did not help is tried again later and later.
const (
	unequalEnough = 3
	repairAgain   = 10 * time.Second
	repairMax     = 5 * time.Minute
)

// errHorizon says that the asked node has no digests of that moment.
var errHorizon = errors.New("it has no digests of that horizon")

// A sliceHistory has the digests that the newest sums were made of.
type sliceHistory [4]struct {
	horizon uint64
	digests conntable.Digests
}

func (s *sliceHistory) set(horizon uint64, d *conntable.Digests) {
	if s[0].horizon != horizon {
		copy(s[1:], s[:])
	}
	s[0].horizon, s[0].digests = horizon, *d
}

// at returns the digests of a horizon, nil if there are none any more.
func (s *sliceHistory) at(horizon uint64) *conntable.Digests {
	for i := range s {
		if s[i].horizon == horizon && horizon != 0 {
			d := s[i].digests
			return &d
		}
	}
	return nil
}

// SetDigests tells the peers what this node holds as of horizon
// (conntable.Table.Digests).
func (s *Session) SetDigests(horizon uint64, d *conntable.Digests) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests.set(horizon, d.Sum())
	s.ownSlices.set(horizon, d)
	for _, p := range s.peers {
		s.compareLocked(p)
	}
}

// comparedLocked tells who waits for comparisons.
func (s *Session) comparedLocked() {
	close(s.compared)
	s.compared = make(chan struct{})
}

func (s *Session) compareLocked(p *peerState) {
	h, equal := s.digests.compare(&p.digests)
	if h == 0 || h < p.equalH || h == p.equalH && p.equal != nil && *p.equal == equal {
		return
	}
	again := h == p.equalH
	p.equal, p.equalH = &equal, h
	s.comparedLocked()
	if equal {
		p.had = p.had || p.pulled && p.synced
		p.unequal, p.repairWait = 0, 0
		if !p.repairAt.IsZero() {
			p.repairAt = earlier(p.repairAt, time.Now().Add(repairAgain))
		}
		return
	}
	if again {
		return
	}
	if p.unequal++; p.unequal >= unequalEnough && p.synced && s.hasJoined() {
		s.wake()
	}
}

// startRepairs starts those repairs that are wanted and due.
func (s *Session) startRepairs(ctx context.Context, now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.unequal < unequalEnough || p.pulling || p.pullWanted || !p.up(now) || !p.synced || !s.hasJoined() || s.pulls >= maxPulls {
			continue
		}
		if p.repairAt.After(now) {
			next = earlier(next, p.repairAt)
			continue
		}
		d := s.ownSlices.at(p.equalH)
		if d == nil {
			continue // the next comparison is of a newer one
		}
		p.repairWait = min(max(2*p.repairWait, repairAgain), repairMax)
		p.repairAt = now.Add(p.repairWait)
		p.pulling = true
		s.pulls++
		t, h := p.target(), p.equalH
		s.group.Go(func() error { s.runRepair(ctx, t, h, d); return nil })
	}
	return next
}

// runRepair does one repair and notes how it went.
func (s *Session) runRepair(ctx context.Context, t pullTarget, horizon uint64, d *conntable.Digests) {
	var st pullState
	err := s.pull(ctx, t, appendRepair(nil, t.version, s.self, s.cfg.Node, horizon, d), &st)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	p := t.peer
	s.pulls--
	p.pulling, p.anew = false, false
	p.received += st.records
	s.pullEndedLocked()
	if p.boot != t.boot {
		return
	}
	p.repairs++
	p.mended += st.records
	s.caughtUpLocked(p)
	s.receiptLocked(p)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("repair", "peer", t.name, "addr", t.addr, "err", err)
		return
	}
	p.fetched = true
	s.comparedLocked()
	s.log.Info("tables differed, slices exchanged", "peer", t.name, "records", st.records)
}

// appendRepair makes the first frame of a stream that asks for the records of
// the slices that differ from d.
func appendRepair(b []byte, version uint8, self conntable.NodeID, name string, horizon uint64, d *conntable.Digests) []byte {
	b = (&head{version: version, typ: typeRepair, node: self}).append(b)
	b = append(append(b, byte(len(name))), name...)
	b = binary.BigEndian.AppendUint64(b, horizon)
	for _, v := range d {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// parseRepair reads the rest of that frame, and returns the slices in which
// this node differs.
func (s *Session) parseRepair(c *cursor) (*conntable.Slices, error) {
	horizon := c.u64()
	var theirs conntable.Digests
	for i := range theirs {
		theirs[i] = c.u64()
	}
	if c.bad {
		return nil, errMalformed
	}
	s.mu.Lock()
	ours := s.ownSlices.at(horizon)
	s.mu.Unlock()
	if ours == nil {
		return nil, errHorizon
	}
	diff := ours.Diff(&theirs)
	return &diff, nil
}
