package conntable

import (
	"iter"
	"time"
)

const (
	wheelSlots = 1024
	wheelTick  = time.Second
)

// A wheel finds the entries whose deadline has passed: slot n holds those that
// are due in a second s with s % wheelSlots == n (G. Varghese and T. Lauck,
// "Hashed and Hierarchical Timing Wheels", scheme 6). Entries due later than
// one turn are passed over until their turn comes.
type wheel struct {
	heads [wheelSlots]int32
	done  int64 // the last second that due looked at
}

func (w *wheel) init() {
	for i := range w.heads {
		w.heads[i] = none
	}
}

// place puts entry i where its deadline belongs, from wherever it was.
func (w *wheel) place(entries []entry, i int32) {
	e := &entries[i]
	// The second after the deadline; the past is due at the next look.
	second := max(int64(e.deadline/wheelTick)+1, w.done+1)
	slot := int32(second % wheelSlots)
	if e.slot == slot {
		return
	}
	w.unlink(entries, i)
	e.slot, e.prev, e.next = slot, none, w.heads[slot]
	if e.next != none {
		entries[e.next].prev = i
	}
	w.heads[slot] = i
}

func (w *wheel) unlink(entries []entry, i int32) {
	e := &entries[i]
	if e.slot == none {
		return
	}
	if e.prev != none {
		entries[e.prev].next = e.next
	} else {
		w.heads[e.slot] = e.next
	}
	if e.next != none {
		entries[e.next].prev = e.prev
	}
	e.slot = none
}

// due unlinks and yields every entry whose deadline is not after now.
func (w *wheel) due(entries []entry, now time.Duration) iter.Seq[int32] {
	return func(yield func(int32) bool) {
		second := int64(now / wheelTick)
		from := max(w.done+1, second-wheelSlots+1)
		for s := from; s <= second; s++ {
			for i := w.heads[s%wheelSlots]; i != none; {
				e := &entries[i]
				next := e.next
				if e.deadline <= now {
					w.unlink(entries, i)
					if !yield(i) {
						return
					}
				}
				i = next
			}
		}
		w.done = max(w.done, second)
	}
}
