package conntable

const (
	segmentBits = 10
	segmentLen  = 1 << segmentBits
)

// An arena holds values of T in segments of fixed size. It grows by one
// segment at a time and never moves a value, so growing neither copies nor
// holds twice what is there, and ids stay good. A T without pointers costs the
// garbage collector nothing.
//
// Ids count from 1; 0 stands for none, so that zeroed links are empty ones.
type arena[T any] struct {
	segments []*[segmentLen]T
	used     uint32 // ids ever handed out
}

// at returns the value of id, which must have been handed out.
func (a *arena[T]) at(id uint32) *T {
	return &a.segments[id>>segmentBits][id&(segmentLen-1)]
}

// grow hands out a new id.
func (a *arena[T]) grow() uint32 {
	a.used++
	if int(a.used>>segmentBits) == len(a.segments) {
		a.segments = append(a.segments, new([segmentLen]T))
	}
	return a.used
}
