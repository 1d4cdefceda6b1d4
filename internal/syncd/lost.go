package syncd

import (
	"time"

	"saru/conntable"
)

const (
	// lostEvery is how often it is looked, at least, whether the kernel lost what
	// it was told.
	lostEvery = time.Second
	// tellAgain is how many of those told last are told again then. What the
	// kernel loses it loses between two looks at its socket, which four of the
	// largest datagrams are apart (ipvs/inject.go), and a chunk is told between
	// two of ours.
	tellAgain = 4*216 + 2*injectChunk
)

// lately is what the kernel was told last.
type lately struct {
	keys [tellAgain]conntable.Key
	n    int    // told in all
	lost uint64 // datagrams that the kernel lost, as far as is mended
}

func (l *lately) add(recs []conntable.Record) {
	for i := range recs {
		l.keys[l.n%tellAgain] = recs[i].Key
		l.n++
	}
}

// tellLost tells the kernel again what it may have lost, if it lost anything:
// the audit would find it too, but for SIP's calls, and later.
func (e *Engine) tellLost(last *lately) {
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
