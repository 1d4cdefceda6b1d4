package syncd

import (
	"time"

	"saru/conntable"
	"saru/ipvs"
)

const (
	// lostEvery is how often it is looked, at least, whether the kernel lost what
	// it was told.
	lostEvery = time.Second
	// tellAgain is how many of those told last are told again then: what was
	// told between two looks at the kernel's socket, and a chunk before each of
	// ours.
	tellAgain = ipvs.Unlooked + 2*injectChunk
)

// lately is what the kernel was told last.
type lately struct {
	keys [tellAgain]conntable.Key
	n    int    // told in all
	lost uint64 // datagrams that the kernel lost, as far as is mended
}

func (l *lately) add(k *conntable.Key) {
	l.keys[l.n%tellAgain] = *k
	l.n++
}

// tellLost tells the kernel again what it may have lost, if it lost anything:
// the audit would find it too, but for SIP's calls, and later.
func (e *Engine) tellLost() {
	last := &e.lately
	lost, before := e.kernel.Lost(), last.lost
	last.lost = lost
	if lost <= before { // less: another source
		return
	}
	n := uint64(0)
	for i := range min(last.n, tellAgain) {
		if e.tellKernel(&last.keys[i]) {
			n++
		}
	}
	e.reinjected.Add(n)
	e.log.Warn("the kernel lost datagrams that it was told connections by; telling it again", "datagrams", lost-before, "connections", n)
}
