package conntable

import "time"

// A Batch merges records many at a time, for callers with a datagram's worth of
// them. One record waits for memory several times: for its bucket, for its
// entry, for those that a growing index moves; a table of millions is in no
// cache. A Batch goes to a shard once, looks at the places of all its records
// there, which are independent of each other so that the processor waits for
// many at the same time, and merges them then.
//
// The zero Batch is ready for use. It is not safe for concurrent use.
type Batch struct {
	hashes  []uint64
	order   []int32  // indices of the records, by shard and then as they came
	probes  []probe  // as of order
	places  []uint32 // as of order: buckets, then the first entries in them
	results []Result
	touched uint64 // keeps what is read ahead from being optimised away
}

// ApplyAll is Apply for each of recs. Those of one key are merged as they come.
// The results are in the order of recs, and good until b is used again.
func (t *Table) ApplyAll(b *Batch, recs []Record, q Queue) []Result {
	return t.applyAll(b, recs, q, 0)
}

// HearAll is Hear for each of recs, as ApplyAll is Apply.
func (t *Table) HearAll(b *Batch, recs []Record, q Queue, least time.Duration) []Result {
	return t.applyAll(b, recs, q, least)
}

func (t *Table) applyAll(b *Batch, recs []Record, q Queue, least time.Duration) []Result {
	from := b.sort(recs)
	now := t.moment()
	for at := range t.shards {
		if own := b.order[from[at]:from[at+1]]; len(own) > 0 {
			b.applyIn(t, int32(at), recs, own, q, least, &now)
		}
	}
	return b.results
}

// sort hashes recs and puts them in order. Those of shard n are from the nth
// to the next of the indices that it returns.
func (b *Batch) sort(recs []Record) (from [shardCount + 1]int32) {
	if cap(b.hashes) < len(recs) {
		b.hashes, b.order = make([]uint64, len(recs)), make([]int32, len(recs))
		b.probes, b.places = make([]probe, len(recs)), make([]uint32, len(recs))
		b.results = make([]Result, len(recs))
	}
	b.hashes, b.order = b.hashes[:len(recs)], b.order[:len(recs)]
	b.probes, b.places, b.results = b.probes[:len(recs)], b.places[:len(recs)], b.results[:len(recs)]
	var next [shardCount]int32
	for i := range recs {
		b.hashes[i] = keyHash(&recs[i].Key)
		next[shardOf(b.hashes[i])]++
	}
	at := int32(0)
	for n, count := range next {
		from[n], next[n] = at, at
		at += count
	}
	from[shardCount] = at
	for i, hash := range b.hashes {
		n := shardOf(hash)
		b.order[next[n]] = int32(i)
		next[n]++
	}
	return from
}

// applyIn merges those of recs that own names, all of shard at.
func (b *Batch) applyIn(t *Table, at int32, recs []Record, own []int32, q Queue, least time.Duration, now *moment) {
	s := &t.shards[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, i := range own {
		b.probes[n] = s.probe(&recs[i].Key)
	}
	turns := s.services.turns
	if len(own) > 1 {
		b.touch(s, len(own))
	}
	for n, i := range own {
		if turns != s.services.turns {
			b.probes[n] = s.probe(&recs[i].Key)
		}
		b.results[i] = s.apply(t, at, b.hashes[i], &b.probes[n], &recs[i], q, least, now)
	}
}

// touch reads ahead what merging n probed records will read, and changes
// nothing. Its loops are short, so that the processor gets far ahead in them.
func (b *Batch) touch(s *shard, n int) {
	x := &s.index
	places := b.places[:n]
	for i := range places {
		places[i] = x.place(b.probes[i].hash(s.seed))
	}
	misses := uint32(0)
	for i, at := range places {
		places[i] = *x.bucket(at)
	}
	for _, id := range places {
		if id != 0 {
			b.touched += s.entries.at(id).read()
		} else {
			misses++
		}
	}
	// What is new makes the index grow.
	for at := x.buckets; at < min(x.buckets+spread*misses, 2*x.round); at++ {
		if id := *x.bucket(at - x.round); id != 0 {
			b.touched += s.entries.at(id).read()
		}
	}
}

// read reads both ends of e, which may be in two lines of the cache.
func (e *entry) read() uint64 { return e.clock + uint64(e.bits) }

// TakeAll is Take for each of refs. It appends the states of those with which
// there is something to do to recs.
func (t *Table) TakeAll(refs []Ref, q Queue, recs []Record) []Record {
	now := t.now()
	for len(refs) > 0 {
		n := 1
		for n < len(refs) && refs[n].shard == refs[0].shard {
			n++
		}
		recs = t.shards[refs[0].shard].takeAll(refs[:n], q, recs, now)
		refs = refs[n:]
	}
	return recs
}

func (s *shard) takeAll(refs []Ref, q Queue, recs []Record, now time.Duration) []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		var r *Record
		if len(recs) < cap(recs) {
			recs = recs[:len(recs)+1]
		} else {
			recs = append(recs, Record{})
		}
		if r = &recs[len(recs)-1]; !s.take(uint32(ref.slot), q, r, now) {
			recs = recs[:len(recs)-1]
		}
	}
	return recs
}
