package conntable

import "time"

// room reports whether there is room for one more entry in s, which it counts.
// A full table makes room if an entry of s dies before until.
func (t *Table) room(s *shard, until, now time.Duration) bool {
	if t.used.Add(1) <= t.limit {
		return true
	}
	t.used.Add(-1)
	id := s.leastUseful(until, now)
	if id == 0 {
		return false
	}
	e := s.entries.at(id)
	m := s.modes.at(e.mode)
	k := s.key(e)
	hash := keyHash(&k)
	tm := termOf(hash, Version{e.clock, m.node}, m.timeout)
	s.calendar.drop(sliceIn(hash), &tm)
	t.drop(s, id)
	t.shed.Add(1)
	t.used.Add(1)
	return true
}

// leastUseful returns an entry of the first second in which any dies, if that
// is before until, else 0. It looks at shedTries entries at most, and gives up
// when these live longer than the wheel knew; their places are right then.
func (s *shard) leastUseful(until, now time.Duration) uint32 {
	for range shedTries {
		id := s.wheel.next()
		if id == 0 {
			return 0
		}
		e := s.entries.at(id)
		dies := e.until(now)
		wake := e.wake
		s.wheel.remove(&s.entries, id)
		s.wheel.add(&s.entries, id, dies)
		if e.wake == wake {
			if second(dies) < second(until) {
				return id
			}
			return 0
		}
	}
	return 0
}

// drop takes entry id out of the table, but not out of the digests.
func (t *Table) drop(s *shard, id uint32) {
	if s.entries.at(id).deleted() {
		t.tombs.Add(-1)
	}
	s.destroy(id)
	t.used.Add(-1)
}

// Expire drops all entries whose deadline has passed, and returns how many.
// Call it about once a second.
func (t *Table) Expire() int {
	n := 0
	now, tick := t.now(), int64(t.clock.Now()>>horizonBits)
	for i := range t.shards {
		for more := true; more; {
			var some int
			some, more = t.shards[i].expire(t, now, tick)
			n += some
		}
	}
	return n
}

// expire looks at some of the entries that are due. It returns how many it
// dropped, and whether there are more.
func (s *shard) expire(t *Table, now time.Duration, tick int64) (n int, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range expireChunk {
		id := s.wheel.due(now)
		if id == 0 {
			return n, false
		}
		e := s.entries.at(id)
		if until := e.until(now); until > now { // it was refreshed
			s.wheel.remove(&s.entries, id)
			s.wheel.add(&s.entries, id, until)
			continue
		}
		s.forget(e, tick)
		t.drop(s, id)
		n++
	}
	return n, true
}

// forget takes an entry that died at tick out of the digests, if need be. As a
// rule it need not: the term leaves by its own quantised deadline, at the same
// horizon everywhere. But one that was told with less remaining than its
// timeout would linger.
func (s *shard) forget(e *entry, tick int64) {
	m := s.modes.at(e.mode)
	v := Version{e.clock, m.node}
	if termOf(0, v, m.timeout).leave <= tick+lingerTicks {
		return
	}
	k := s.key(e)
	hash := keyHash(&k)
	tm := termOf(hash, v, m.timeout)
	s.calendar.drop(sliceIn(hash), &tm)
}
