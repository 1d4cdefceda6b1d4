package peer

import "time"

// ringSize is how many datagrams of records a sender can send again, and the one
// that it is making: at 1,432 bytes at most 5.9 MB, and more than a second of 100
// records each at 300,000 records a second. A power of two.
const ringSize = 4096

// A ring keeps the last datagrams of records as they were sealed from.
type ring struct {
	highest uint64
	gone    uint64 // up to here they are not to be sent again
	slots   [ringSize]kept
}

type kept struct {
	message []byte
	sent    time.Time
}

// slot returns the buffer for the next sequence number's message; store puts
// it back.
func (r *ring) slot() []byte { return r.slots[(r.highest+1)%ringSize].message[:0] }

func (r *ring) store(message []byte, now time.Time) {
	r.highest++
	r.slots[r.highest%ringSize] = kept{message, now}
}

// lowest is the lowest sequence number still kept. One slot is for the message
// that is being made, even if nothing comes of it.
func (r *ring) lowest() uint64 {
	const keeps = ringSize - 1
	if r.highest < keeps {
		return r.gone + 1
	}
	return max(r.gone, r.highest-keeps) + 1
}

// forget gives up all that was kept.
func (r *ring) forget() { r.gone = r.highest }

func (r *ring) get(seq uint64) (kept, bool) {
	if seq < r.lowest() || seq > r.highest {
		return kept{}, false
	}
	return r.slots[seq%ringSize], true
}
