package seal

const (
	windowWords = 16
	// windowSize is how far behind the newest a datagram may come, in
	// datagrams (the method is RFC 6479's).
	windowSize = (windowWords - 1) * 64
)

// A window remembers which sequence numbers of one sender were accepted. The
// zero value is ready; sequence number 0 is never accepted.
type window struct {
	last uint64
	ring [windowWords]uint64
}

// fresh reports whether accept would accept seq.
func (w *window) fresh(seq uint64) bool {
	if seq == 0 || (w.last > windowSize && seq <= w.last-windowSize) {
		return false
	}
	return seq > w.last || w.ring[seq/64%windowWords]&(1<<(seq%64)) == 0
}

// accept marks seq as seen, and reports whether it was fresh.
func (w *window) accept(seq uint64) bool {
	if !w.fresh(seq) {
		return false
	}
	if seq > w.last {
		cur, next := w.last/64, seq/64
		for i := cur + 1; i <= next && i <= cur+windowWords; i++ {
			w.ring[i%windowWords] = 0
		}
		w.last = seq
	}
	w.ring[seq/64%windowWords] |= 1 << (seq % 64)
	return true
}
