package conntable

import (
	"encoding/binary"
	"slices"
)

// Most connections need none of what is here: IPv6 clients, sequence numbers,
// persistence engines' data. It lies beside the entries, so that they are
// small.

// An addresses table holds the IPv6 clients' addresses. A free one links the
// next in its first bytes.
type addresses struct {
	arena arena[[16]byte]
	free  uint32
}

func (a *addresses) add(addr [16]byte) uint32 {
	id := a.free
	if id == 0 {
		id = a.arena.grow()
	} else {
		a.free = binary.NativeEndian.Uint32(a.arena.at(id)[:])
	}
	*a.arena.at(id) = addr
	return id
}

func (a *addresses) remove(id uint32) {
	binary.NativeEndian.PutUint32(a.arena.at(id)[:], a.free)
	a.free = id
}

// extra is what few connections have.
type extra struct {
	seq    *SeqPair
	peName string
	peData []byte
}

// equal reports whether x is r's.
func (x *extra) equal(r *Record) bool {
	return x.peName == r.PEName && slices.Equal(x.peData, r.PEData) &&
		(x.seq == nil) == (r.Seq == nil) && (x.seq == nil || *x.seq == *r.Seq)
}

// setExtra keeps r's extras for entry id, or forgets what it had.
func (s *shard) setExtra(id uint32, e *entry, r *Record) {
	if r.Seq != nil || r.PEName != "" || r.PEData != nil {
		if s.extras == nil {
			s.extras = map[uint32]extra{}
		}
		s.extras[id] = extra{r.Seq, r.PEName, r.PEData}
		e.bits |= bitExtra
	} else if e.bits&bitExtra != 0 {
		delete(s.extras, id)
		e.bits &^= bitExtra
	}
}
