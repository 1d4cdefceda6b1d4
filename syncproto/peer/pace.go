package peer

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"saru/internal/seal"
)

// pace does what is due by time: heartbeats, asking for what is missing,
// pulls, and the end of joining.
func (s *Session) pace(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-timer.C:
		}
		next := s.work(ctx, time.Now())
		timer.Reset(time.Until(next))
	}
}

// work does all that is due at now, and returns when something is due next.
func (s *Session) work(ctx context.Context, now time.Time) time.Time {
	next := s.beat(now)
	next = earlier(next, s.askMissing(now))
	next = earlier(next, s.startPulls(ctx, now))
	next = earlier(next, s.startRepairs(ctx, now))
	next = earlier(next, s.tellServices(now))
	next = earlier(next, s.fetchServices(ctx, now))
	s.forgetSilent(now)
	if !s.checkJoined(now) {
		next = earlier(next, now.Add(heartbeatEvery))
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}

// beat sends a heartbeat if one is due.
func (s *Session) beat(now time.Time) time.Time {
	s.ringMu.Lock()
	recordsAt := s.recordsAt
	s.ringMu.Unlock()

	s.mu.Lock()
	due := s.beatAt.Add(heartbeatEvery)
	if recordsAt.After(s.beatAt) {
		due = earlier(due, recordsAt.Add(heartbeatSoon))
	}
	if s.answer || s.ask {
		due = earlier(due, s.beatAt.Add(heartbeatSoon))
	}
	if due.After(now) {
		s.mu.Unlock()
		return due
	}
	ask, question, answers, paths := s.ask, s.questionLocked(), s.answersLocked(), s.pathsLocked(now)
	s.beatAt, s.answer, s.ask = now, false, false
	horizon, digest := s.digests[0].horizon, s.digests[0].sum
	s.mu.Unlock()

	// After the questions: the answer is all that was sent before it.
	s.ringMu.Lock()
	highest, lowest, sent := s.ring.highest, s.ring.lowest(), s.sent
	s.ringMu.Unlock()
	hb := heartbeat{
		incarnation: s.incarnation, highest: highest, lowest: lowest, clock: s.cfg.Clock.Now(),
		horizon: horizon, digest: digest, connections: uint32(s.cfg.Len()),
		port: s.cfg.Transport.Port(), name: s.cfg.Node,
		version: protocolVersion, streams: uint8(s.streams.Load()), rate: s.rate(now, sent),
		ask: question, answers: answers, paths: paths,
	}
	if s.synced.Load() {
		hb.flags |= flagSynced
	}
	if ask || question != 0 || now.Sub(s.started) < s.cfg.StartPeriod {
		hb.flags |= flagAnswer
	}
	d, _ := s.sealer.Seal(nil, s.pad(hb.append(nil, s.self), now))
	s.broadcast([][]byte{d}, true)
	return now.Add(heartbeatEvery)
}

// rate returns how many records were sent in the last second, or a little
// more. Only beat calls it.
func (s *Session) rate(now time.Time, sent uint64) uint32 {
	if d := now.Sub(s.rateAt); d >= time.Second {
		s.lastRate = uint32(min(uint64(float64(sent-s.rateSent)/d.Seconds()), math.MaxUint32))
		s.rateAt, s.rateSent = now, sent
	}
	return s.lastRate
}

// askMissing asks those peers that we miss datagrams of.
func (s *Session) askMissing(now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if len(p.gaps.spans) == 0 || !p.up(now) {
			continue
		}
		if p.missingAt.After(now) {
			next = earlier(next, p.missingAt)
			continue
		}
		p.missingAt = now.Add(p.wait)
		p.wait = min(2*p.wait, missingMax)
		next = earlier(next, p.missingAt)
		m := missing{boot: p.boot}
		for _, g := range p.gaps.spans {
			if g.from = max(g.from, p.lowest); g.from <= g.to && len(m.ranges) < maxRanges {
				m.ranges = append(m.ranges, g)
			}
		}
		if len(m.ranges) > 0 {
			d, _ := s.sealer.Seal(nil, m.append(nil, s.self))
			s.sentOr([][]byte{d}, s.cfg.Transport.SendTo([][]byte{d}, p.addr))
		}
	}
	return next
}

// pullEndedLocked tells who waits for the end of pulls.
func (s *Session) pullEndedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// forgetSilent drops peers that are silent for long, and no longer minds what
// those understand that are silent.
func (s *Session) forgetSilent(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, p := range s.peers {
		if now.Sub(p.heardAt) > forgetAfter && !p.pulling {
			s.restartedLocked(p)
			delete(s.peers, node)
		}
	}
	s.chooseVersionLocked(now)
	s.chooseSizeLocked(now)
}

// PullAll begins to pull everything again from all peers that are up.
func (s *Session) PullAll() { s.pullAll() }

// pullAll returns of which lives of which peers everything is pulled again.
func (s *Session) pullAll() map[*peerState]seal.Boot {
	defer s.wake()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	asked := map[*peerState]seal.Boot{}
	for _, p := range s.peers {
		if p.up(now) {
			asked[p] = p.boot
			p.pulled, p.had, p.failures, p.pullAt = false, false, 0, now
			p.pullAnew()
		}
	}
	return asked
}

// Resync pulls everything again from all peers that are up, and waits for the
// end. It returns how many peers were asked.
func (s *Session) Resync(ctx context.Context) (int, error) {
	asked := s.pullAll()
	for {
		s.mu.Lock()
		changed, busy := s.changed, false
		var failed error
		for p, boot := range asked {
			if p.boot == boot && !p.pulled && p.up(time.Now()) {
				busy = true
				failed = cmp.Or(failed, p.pullErr)
			}
		}
		s.mu.Unlock()
		if !busy {
			return len(asked), nil
		}
		select {
		case <-ctx.Done():
			return len(asked), cmp.Or(failed, ctx.Err())
		case <-changed:
		case <-time.After(silentAfter): // a peer may have fallen silent
		}
	}
}

// Peers returns what is known of all peers, by name.
func (s *Session) Peers() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := make([]PeerStatus, 0, len(s.peers))
	for _, p := range s.peers {
		out = append(out, p.status(now))
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
