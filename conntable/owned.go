package conntable

// Owned says how many connections a node told last, by what they count as at
// their real servers.
type Owned struct {
	Active, Inactive, Templates int
}

// Owned returns how many connections in the table have a version of node;
// tombstones are not counted, nor what a sync message made in the kernel
// before anybody here saw it (FlagSync). It looks at no entries: it adds up
// how many hold each mode, a few hundred numbers at most.
func (t *Table) Owned(node NodeID) Owned {
	var o Owned
	for i := range t.shards {
		t.shards[i].owned(node, &o)
	}
	return o
}

func (s *shard) owned(node NodeID, o *Owned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.modes.values {
		h := &s.modes.values[i]
		m := &h.value
		switch {
		case h.holds == 0 || m.node != node || m.deleted || m.flags&FlagSync != 0:
		case m.flags&FlagTemplate != 0:
			o.Templates += int(h.holds)
		case m.flags&FlagInactive != 0:
			o.Inactive += int(h.holds)
		default:
			o.Active += int(h.holds)
		}
	}
}
