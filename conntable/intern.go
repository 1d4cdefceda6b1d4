package conntable

// An interned table gives each different value a small id, and forgets values
// that nobody holds. It is for what few values stand for in many connections:
// services, real servers, states. It is a hash table with chains through
// held.next, as many heads as there may be values in values' room.
//
// An id cannot wrap: there are never more ids than entries that hold one, and
// the table's limit keeps these below 1<<30.
type interned[T internable] struct {
	values []held[T] // by id; 0 is none
	heads  []uint32  // a power of two
	seed   uint64    // so that nobody outside can choose values of one chain
	free   uint32    // head of the free ids, linked by held.next
	turns  uint32    // how often a value came or went
}

type internable interface {
	comparable
	hash(seed uint64) uint64
}

type held[T internable] struct {
	value T
	holds uint32
	next  uint32
}

func (in *interned[T]) init(seed uint64) {
	in.seed = seed
	in.values = make([]held[T], 1)
	in.heads = make([]uint32, 8)
}

func (in *interned[T]) at(id uint32) *T { return &in.values[id].value }

func (in *interned[T]) head(v *T) *uint32 {
	return &in.heads[(*v).hash(in.seed)&uint64(len(in.heads)-1)]
}

// find returns the id of v, or 0.
func (in *interned[T]) find(v *T) uint32 {
	id := *in.head(v)
	for id != 0 && in.values[id].value != *v {
		id = in.values[id].next
	}
	return id
}

// hold returns the id of v, which the caller now holds once more.
func (in *interned[T]) hold(v *T) uint32 {
	id := in.find(v)
	if id == 0 {
		id = in.add(v)
	}
	in.values[id].holds++
	return id
}

func (in *interned[T]) add(v *T) uint32 {
	in.turns++
	id := in.free
	if id == 0 {
		id = uint32(len(in.values))
		in.values = append(in.values, held[T]{})
		in.grow()
	} else {
		in.free = in.values[id].next
	}
	head := in.head(v)
	in.values[id] = held[T]{value: *v, next: *head}
	*head = id
	return id
}

// grow makes more heads if there may be more values than those. The id that
// was added last has no value yet.
func (in *interned[T]) grow() {
	if len(in.values) <= len(in.heads) {
		return
	}
	in.heads = make([]uint32, 2*len(in.heads))
	for id := range uint32(len(in.values) - 1) {
		if h := &in.values[id]; h.holds > 0 {
			head := in.head(&h.value)
			h.next, *head = *head, id
		}
	}
}

// release gives one hold of id back.
func (in *interned[T]) release(id uint32) {
	h := &in.values[id]
	h.holds--
	if h.holds > 0 {
		return
	}
	in.turns++
	link := in.head(&h.value)
	for *link != id {
		link = &in.values[*link].next
	}
	*link = h.next
	*h = held[T]{next: in.free}
	in.free = id
}

// swap makes *id, which the caller holds, the id of v.
func (in *interned[T]) swap(id *uint32, v *T) {
	if in.values[*id].value == *v {
		return
	}
	old := *id
	*id = in.hold(v)
	in.release(old)
}
