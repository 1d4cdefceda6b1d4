package datagrams

import (
	"sync"
	"time"
)

// A Ledger is who accepted which datagram, when. A datagram's number is its
// index, and its number modulo Flows the port that it was sent from. It is safe
// for concurrent use.
type Ledger struct {
	Flows int

	mu    sync.Mutex
	sent  []time.Time
	first []Acceptance
	more  []Again
}

// An Acceptance is one director's: the time is the kernel's, of the datagram's
// arrival at its interface.
type Acceptance struct {
	By string
	At time.Time
}

// An Again is a datagram's acceptance after its first.
type Again struct {
	Number uint32
	Sent   time.Time
	First  Acceptance
	Acceptance
}

func (l *Ledger) send() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, time.Now().Round(0)) // as the kernel's stamps: of the wall clock
	l.first = append(l.first, Acceptance{})
	return uint32(len(l.sent) - 1)
}

func (l *Ledger) accept(n uint32, a Acceptance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case int(n) >= len(l.sent):
	case l.first[n].By == "":
		l.first[n] = a
	default:
		l.more = append(l.more, Again{n, l.sent[n], l.first[n], a})
	}
}

// Counts returns how many datagrams were sent and how many of them accepted.
func (l *Ledger) Counts() (sent, accepted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.first {
		if f.By != "" {
			accepted++
		}
	}
	return len(l.sent), accepted
}

// Twice returns the acceptances that should not have been.
func (l *Ledger) Twice() []Again {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Again(nil), l.more...)
}

// A Summary is what became of the datagrams of some time.
type Summary struct {
	Sent, Lost int
	Gap        time.Duration  // the longest in which none of one flow was accepted, from the first lost to the last
	Outage     time.Duration  // the longest in which some were lost all the time, of whatever flows
	By         map[string]int // accepted first, by director
}

// scattered is how far apart datagrams are lost that are no outage: of one flow
// of many too few are sent to tell.
const scattered = 50 * time.Millisecond

// Between sums up the datagrams sent between two times.
func (l *Ledger) Between(from, to time.Time) Summary {
	from, to = from.Round(0), to.Round(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Summary{By: map[string]int{}}
	down := make([]time.Time, l.Flows)
	var out, lost time.Time // of the present outage: the first and the last
	for n, at := range l.sent {
		if at.Before(from) || at.After(to) {
			continue
		}
		s.Sent++
		since := &down[n%l.Flows]
		if who := l.first[n].By; who != "" {
			*since = time.Time{}
			s.By[who]++
			continue
		}
		s.Lost++
		if since.IsZero() {
			*since = at
		}
		s.Gap = max(s.Gap, at.Sub(*since))
		if at.Sub(lost) > scattered {
			out = at
		}
		lost = at
		s.Outage = max(s.Outage, lost.Sub(out))
	}
	return s
}

// ArrivedAt returns when each of the datagrams that name accepted arrived
// there, from the given time on.
func (l *Ledger) ArrivedAt(name string, from time.Time) (at []time.Time) {
	from = from.Round(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.first {
		if a.By == name && a.At.After(from) {
			at = append(at, a.At)
		}
	}
	for _, m := range l.more {
		if m.By == name && m.At.After(from) {
			at = append(at, m.At)
		}
	}
	return at
}

// Takeover returns when the first datagram arrived elsewhere of the flows whose
// last one before the cut was accepted by victim; zero if none has yet.
func (l *Ledger) Takeover(victim string, cut time.Time) (first time.Time) {
	cut = cut.Round(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	owner := make([]string, l.Flows)
	for n, a := range l.first {
		who := &owner[n%l.Flows]
		switch {
		case a.By == "":
		case a.At.Before(cut):
			*who = a.By
		case *who == victim && a.By != victim && l.sent[n].After(cut) && (first.IsZero() || a.At.Before(first)):
			first = a.At
		}
	}
	return first
}
