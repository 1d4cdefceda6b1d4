package conntable

import (
	"math/bits"
	"time"
)

const (
	wheelSlots = 1024
	wheelTick  = time.Second
)

// A wheel finds the entries whose deadline has passed (G. Varghese and T.
// Lauck, "Hashed and Hierarchical Timing Wheels"). Slot n holds, linked through
// entry.later and entry.sooner, the entries to be looked at in the next second
// s with s % wheelSlots == n; entry.wake is the slot.
//
// An entry that lives longer stays where it is, and moves when its slot comes:
// so a refresh, by far the most frequent change, touches no neighbour. Only one
// that is to die sooner moves at once. A deadline of more than a turn from now
// waits in the last slot of the turn, and moves on from there.
type wheel struct {
	heads    [wheelSlots]uint32
	occupied [wheelSlots / 64]uint64 // bit n: slot n is not empty
	done     int64                   // the last second that is dealt with
}

// second returns the first second by which deadline has passed.
func second(deadline time.Duration) int64 {
	return int64((deadline + wheelTick - 1) / wheelTick)
}

// set sees to it that entry id, which is on the wheel, is looked at when
// deadline has passed, or before.
func (w *wheel) set(entries *arena[entry], id uint32, deadline time.Duration) {
	wake := w.done + 1 + (int64(entries.at(id).wake)-(w.done+1))&(wheelSlots-1)
	if second(deadline) < wake {
		w.remove(entries, id)
		w.add(entries, id, deadline)
	}
}

// add puts entry id on the wheel.
func (w *wheel) add(entries *arena[entry], id uint32, deadline time.Duration) {
	slot := min(max(second(deadline), w.done+1), w.done+wheelSlots) & (wheelSlots - 1)
	e := entries.at(id)
	e.wake, e.sooner, e.later = uint16(slot), 0, w.heads[slot]
	if e.later != 0 {
		entries.at(e.later).sooner = id
	}
	w.heads[slot] = id
	w.occupied[slot/64] |= 1 << (slot % 64)
}

// remove takes entry id off the wheel.
func (w *wheel) remove(entries *arena[entry], id uint32) {
	e := entries.at(id)
	if e.later != 0 {
		entries.at(e.later).sooner = e.sooner
	}
	if e.sooner != 0 {
		entries.at(e.sooner).later = e.later
		return
	}
	w.heads[e.wake] = e.later
	if e.later == 0 {
		w.occupied[e.wake/64] &^= 1 << (e.wake % 64)
	}
}

// due returns an entry to be looked at by now, still on the wheel, or 0 if
// there is none.
func (w *wheel) due(now time.Duration) uint32 {
	last := int64(now / wheelTick)
	w.done = max(w.done, last-wheelSlots) // a turn visits every slot
	for w.done < last {
		if id := w.heads[(w.done+1)&(wheelSlots-1)]; id != 0 {
			return id
		}
		w.done++
	}
	return 0
}

// next returns an entry of the slot that comes first, or 0 if the wheel is
// empty.
func (w *wheel) next() uint32 {
	from := int(w.done+1) & (wheelSlots - 1)
	for i := range len(w.occupied) + 1 {
		n := (from/64 + i) % len(w.occupied)
		set := w.occupied[n]
		switch i {
		case 0:
			set &= ^uint64(0) << (from % 64)
		case len(w.occupied):
			set &= 1<<(from%64) - 1
		}
		if set != 0 {
			return w.heads[n*64+bits.TrailingZeros64(set)]
		}
	}
	return 0
}
