package conntable

// An interned table gives each different value a small id, and forgets values
// that nobody holds. It is for what few values stand for in many connections:
// services, real servers, states.
//
// An id cannot wrap: there are never more ids than entries that hold one, and
// the table's limit keeps these below 1<<30.
type interned[T internable] struct {
	ids    map[T]uint32
	values []held[T]  // by id; 0 is none
	free   uint32     // head of the free ids, linked by held.next
	recent [32]uint32 // ids found last, by hint: what is looked for is mostly among them
}

type internable interface {
	comparable
	hint() uint8 // tells values apart that are in use together
}

type held[T internable] struct {
	value T
	holds uint32
	next  uint32
}

func (in *interned[T]) init() {
	in.ids = map[T]uint32{}
	in.values = make([]held[T], 1)
}

func (in *interned[T]) at(id uint32) *T { return &in.values[id].value }

// find returns the id of v, or 0.
func (in *interned[T]) find(v *T) uint32 {
	recent := &in.recent[(*v).hint()%uint8(len(in.recent))]
	if h := &in.values[*recent]; h.holds > 0 && h.value == *v {
		return *recent
	}
	id := in.ids[*v]
	if id != 0 {
		*recent = id
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
	id := in.free
	if id == 0 {
		id = uint32(len(in.values))
		in.values = append(in.values, held[T]{})
	} else {
		in.free = in.values[id].next
	}
	in.values[id] = held[T]{value: *v}
	in.ids[*v] = id
	return id
}

// release gives one hold of id back.
func (in *interned[T]) release(id uint32) {
	h := &in.values[id]
	h.holds--
	if h.holds > 0 {
		return
	}
	delete(in.ids, h.value)
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
