package syncd

import (
	"sync"
	"time"

	"saru/conntable"
	"saru/ipvs"
)

const (
	// lostEvery is how often it is looked, at least, whether the kernel lost what
	// it was told.
	lostEvery = time.Second
	// tellAgain is how many of those told last are told again then: what the
	// kernel may not have read, and a chunk before each look of ours.
	tellAgain = ipvs.Unread + 2*injectChunk
)

// lately is what the kernel was told last.
type lately struct {
	mu   sync.Mutex
	told [tellAgain]told
	n    int    // in all
	lost uint64 // datagrams that the kernel lost, as far as is mended
}

type told struct {
	key   conntable.Key
	moved bool
}

func (l *lately) add(k conntable.Key, moved bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told[l.n%tellAgain] = told{k, moved}
	l.n++
}

// mended is how many losses have been mended, or are about to be.
func (l *lately) mended() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// tellLost tells the kernel again what it may have lost, if it lost anything:
// the audit would find it too, but for SIP's calls, and later.
func (e *Engine) tellLost() {
	last := &e.lately
	last.mu.Lock()
	defer last.mu.Unlock()
	lost, before := e.kernel.Lost(), last.lost
	last.lost = lost
	if lost <= before { // less: another source
		return
	}
	n := uint64(0)
	for _, t := range last.told[:min(last.n, tellAgain)] {
		if t.moved {
			e.moved.note(t.key)
		}
		if e.tellKernel(&t.key) {
			n++
		}
	}
	e.reinjected.Add(n)
	e.log.Warn("the kernel lost datagrams that it was told connections by; telling it again", "datagrams", lost-before, "connections", n)
}

// tellRefused tells the kernel again what it did not take off its table.
func (e *Engine) tellRefused() {
	for i := range e.undeleted {
		e.tellKernel(&e.undeleted[i])
	}
	e.undeleted = e.undeleted[:0]
}
