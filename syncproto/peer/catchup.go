package peer

import (
	"context"
	"errors"
	"fmt"
)

// ErrUnknownPeer says that no peer of the name is heard.
var ErrUnknownPeer = errors.New("no such peer is heard")

var errRestarted = errors.New("it restarted meanwhile")

// A catchUp waits for one peer's records.
type catchUp struct {
	peer    *peerState
	ask     uint64 // a heartbeat that answers this, or a later question, tells how far to wait
	after   uint64 // so does one made later than this, of a peer that answers no questions
	back    bool   // it is the peer that catches up
	told    bool
	highest uint64
	done    chan error
}

// CatchUp waits until all that the named peer had sent when CatchUp was called
// is delivered, whatever was lost on the way. It asks the peer how much that
// is, with its heartbeats until one is answered.
func (s *Session) CatchUp(ctx context.Context, name string) error {
	if err := s.askAndWait(ctx, name, false); err != nil {
		return fmt.Errorf("catch up with %q: %w", name, err)
	}
	return nil
}

// Delivered waits until all that was sent when Delivered was called is
// delivered at the named peer: it answers a question no sooner. One that speaks
// version 1 answers none; of it, a heartbeat made afterwards is all that is
// waited for.
func (s *Session) Delivered(ctx context.Context, name string) error {
	if err := s.askAndWait(ctx, name, true); err != nil {
		return fmt.Errorf("have %q catch up: %w", name, err)
	}
	return nil
}

func (s *Session) askAndWait(ctx context.Context, name string, back bool) error {
	s.mu.Lock()
	var c *catchUp
	for _, p := range s.peers {
		if p.name == name {
			s.asked++
			c = &catchUp{peer: p, back: back, ask: s.asked, after: s.cfg.Clock.Now(), done: make(chan error, 1)}
		}
	}
	if c == nil {
		s.mu.Unlock()
		return ErrUnknownPeer
	}
	s.catchUps[c] = struct{}{}
	s.ask = true
	s.mu.Unlock()
	s.wake()
	var err error
	select {
	case err = <-c.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	delete(s.catchUps, c)
	s.mu.Unlock()
	return err
}

// toldLocked notes how much a peer has sent, for those who wait for it.
func (s *Session) toldLocked(p *peerState, hb *heartbeat) {
	var answered uint64
	for _, a := range hb.answers {
		if a.node == s.self {
			answered = a.ask
		}
	}
	for c := range s.catchUps {
		if c.peer == p && !c.told && (c.ask <= answered || hb.version == 1 && hb.clock > c.after) {
			c.told, c.highest = true, hb.highest
		}
	}
	s.caughtUpLocked(p)
}

// questionLocked returns what to ask with the next heartbeat, 0 for nothing.
func (s *Session) questionLocked() uint64 {
	for c := range s.catchUps {
		if !c.told {
			return s.asked
		}
	}
	return 0
}

// answersLocked returns what is to be answered with the next heartbeat: the
// questions of those whose records, as of the question, are delivered here. Who
// is not answered asks again.
func (s *Session) answersLocked() (out []answer) {
	for _, p := range s.peers {
		if p.asks != 0 && len(out) < maxAnswers && !p.pulling && !p.pullWanted && p.gaps.complete(p.asksOf) {
			out = append(out, answer{p.node, p.asks})
			p.asks = 0
		}
	}
	return out
}

// caughtUpLocked lets go who waits for nothing any more. It is called when all
// that is marked as come from p is delivered.
func (s *Session) caughtUpLocked(p *peerState) {
	for c := range s.catchUps {
		if c.peer == p && c.told && c.back {
			c.end(nil)
			continue
		}
		if c.peer == p && c.told && !p.pulling && !p.pullWanted && p.gaps.complete(c.highest) {
			c.end(nil)
		}
	}
}

// restartedLocked ends the waiting for records of a life that is over.
func (s *Session) restartedLocked(p *peerState) {
	for c := range s.catchUps {
		if c.peer == p {
			c.end(errRestarted)
		}
	}
}

func (c *catchUp) end(err error) {
	select {
	case c.done <- err:
	default: // it has ended
	}
}
