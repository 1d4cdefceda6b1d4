package peer

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// sourceWait is for how long a joiner listens before it chooses whom to pull
// from: all answer its first heartbeat at once.
const sourceWait = 100 * time.Millisecond

// hasJoined reports whether joined is closed.
func (s *Session) hasJoined() bool {
	select {
	case <-s.joined:
		return true
	default:
		return false
	}
}

// chooseSourceLocked keeps to, or chooses, the peer that a joiner pulls from:
// of those that say that they hold the cluster's state the one that does the
// least. There may be none: then everybody is pulled from.
func (s *Session) chooseSourceLocked(now time.Time) {
	if p := s.source; p != nil && p.up(now) && p.synced && p.failures < pullPatience && (p.pulled || p.pullWanted || p.pulling) {
		return
	}
	s.source = nil
	for _, p := range s.peers {
		if p.up(now) && p.synced && p.failures < pullPatience && (s.source == nil || p.compareLoad(s.source) < 0) {
			s.source = p
		}
	}
	if s.source != nil {
		s.log.Info("joining", "from", s.source.name, "connections", s.source.connections)
	}
}

// compareLoad says who does less: streams served first, then news told.
func (p *peerState) compareLoad(q *peerState) int {
	return cmp.Or(cmp.Compare(p.streams, q.streams), cmp.Compare(p.rate, q.rate), cmp.Compare(p.name, q.name))
}

// startPulls starts those pulls that are wanted and due.
func (s *Session) startPulls(ctx context.Context, now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	joining := !s.hasJoined()
	if joining {
		if wait := s.started.Add(sourceWait); now.Before(wait) {
			return wait
		}
		s.chooseSourceLocked(now)
		if s.source != nil && s.source.pulled {
			s.coverLocked(s.source) // who was heard only after that pull
		}
	}
	for _, p := range s.peers {
		if !p.pullWanted || p.pulling || !p.up(now) || s.pulls >= maxPulls {
			continue
		}
		if joining && s.source != nil && p != s.source && p.synced {
			continue // covered by the source
		}
		if p.pullAt.After(now) {
			next = earlier(next, p.pullAt)
			continue
		}
		p.pullWanted, p.pulling = false, true
		p.lacking = p.lacking && p.pull.mark != nil // from the beginning it is all
		s.pulls++
		t, st := p.target(), p.pull
		s.group.Go(func() error { s.runPull(ctx, t, st); return nil })
	}
	return next
}

// runPull does one pull, or goes on with one, and notes how it went.
func (s *Session) runPull(ctx context.Context, t pullTarget, st pullState) {
	if st.mark != nil {
		s.log.Info("going on with a pull that broke", "peer", t.name, "records", st.marked)
	}
	st.records = st.marked
	before := st.records
	err := s.pull(ctx, t, appendPull(nil, t.version, s.self, s.cfg.Node, st.mark), &st)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	p := t.peer
	s.pulls--
	p.pulling = false
	p.bulk += st.records - before
	p.received += st.records - before
	s.pullEndedLocked()
	anew := p.anew
	p.anew = false
	if p.boot != t.boot {
		return // begin has arranged for another
	}
	p.pullErr = err
	if err != nil {
		if !anew {
			p.pull = st
		}
		p.failures++
		if st.marked > before {
			p.failures = 1 // it gets on
		}
		p.pullWanted = true
		p.pullAt = now.Add(min(pullAgain<<min(p.failures-1, 8), pullAgainMax))
		if ctx.Err() == nil {
			s.log.Warn("pull", "peer", t.name, "addr", t.addr, "failures", p.failures, "err", err)
		}
		return
	}
	p.failures, p.pull = 0, pullState{}
	p.restPull(now)
	if anew {
		return // the next one is due
	}
	if p.lacking {
		p.lacking, p.pullWanted = false, true
		if !s.hasJoined() && now.Sub(s.started) < awaitMost {
			return
		}
	}
	p.pulled = true
	p.had = p.had || p.synced
	p.gaps.forget(st.highest)
	p.noteFilled()
	s.coverLocked(p)
	s.caughtUpLocked(p)
	s.receiptLocked(p)
	s.log.Info("pulled", "peer", t.name, "records", st.records)
}

// restPull keeps a node that cannot follow a peer, and so has gaps all the time,
// from pulling all the time.
func (p *peerState) restPull(now time.Time) {
	wait := time.Duration(0)
	if now.Sub(p.pulledAt) < pullRestFor {
		wait = min(max(2*p.pullRest, pullRest), pullRestMax)
	}
	p.pulledAt, p.pullRest = now, wait
	p.pullAt = now.Add(wait)
}

// coverLocked spares a joiner the same again from the peers that hold the same
// as its source. That they do is for the comparison of digests to say.
func (s *Session) coverLocked(source *peerState) {
	if s.source != source || s.hasJoined() {
		return
	}
	for _, p := range s.peers {
		if p != source && p.synced && !p.pulled && !p.pulling {
			p.pulled, p.pullWanted = true, false
			s.caughtUpLocked(p)
			s.receiptLocked(p)
		}
	}
}

// checkJoined closes joined when it is time, and reports whether it is closed.
func (s *Session) checkJoined(now time.Time) bool {
	if s.hasJoined() {
		return true
	}
	if now.Sub(s.started) < s.cfg.StartPeriod {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if (p.up(now) && !p.pulled || s.awaits(p, now)) && p.failures < pullPatience {
			return false
		}
	}
	close(s.joined)
	return true
}

// Differ returns the names of the peers that hold the cluster's state, by their
// own words, and may have what we have not: their digest of the newest horizon
// is not ours, or was not compared yet, and what differs was not fetched.
func (s *Session) Differ() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, p := range s.peers {
		if (p.up(now) && p.synced || s.awaits(p, now)) && !p.fetched && (p.equal == nil || !*p.equal) {
			names = append(names, p.name)
		}
	}
	return names
}

// Unread returns the names of the peers that hold the cluster's state, by their
// own words, and of which nothing is known: what they hold was pulled neither
// from them nor from another that holds it too.
func (s *Session) Unread() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, p := range s.peers {
		if (p.up(now) && p.synced || s.awaits(p, now)) && !p.pulled && !p.fetched && (p.equal == nil || !*p.equal) {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// Agrees reports whether the tables of all peers that are heard and hold the
// cluster's state, of one at least, were equal to ours at the last comparison.
func (s *Session) Agrees() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, n := time.Now(), 0
	for _, p := range s.peers {
		if !p.up(now) || !p.synced {
			continue
		}
		if n++; p.equal == nil || !*p.equal {
			return false
		}
	}
	return n > 0
}

// Clashes reports whether another node spoke under our name lately.
func (s *Session) Clashes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.clashAt) < clashFor
}

// Compared is closed when digests were compared the next time.
func (s *Session) Compared() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compared
}
