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
	keys [tellAgain]conntable.Key
	n    int    // told in all
	lost uint64 // datagrams that the kernel lost, as far as is mended
}

func (l *lately) add(k conntable.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys[l.n%tellAgain] = k
	l.n++
}

// tellLost tells the kernel again what it may have lost, if it lost anything,
// and reports whether it did: the audit would find it too, but for SIP's calls,
// and later.
func (e *Engine) tellLost() bool {
	last := &e.lately
	last.mu.Lock()
	defer last.mu.Unlock()
	lost, before := e.kernel.Lost(), last.lost
	last.lost = lost
	if lost <= before { // less: another source
		return false
	}
	n := uint64(0)
	for i := range min(last.n, tellAgain) {
		if e.tellKernel(&last.keys[i]) {
			n++
		}
	}
	e.reinjected.Add(n)
	e.log.Warn("the kernel lost datagrams that it was told connections by; telling it again", "datagrams", lost-before, "connections", n)
	return true
}
