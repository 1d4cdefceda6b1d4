package conntable

const (
	headsBits = 10
	headsLen  = 1 << headsBits

	// spread is how many buckets there are for each entry. More cost 4 bytes
	// each; fewer make chains longer, and each step along a chain waits for
	// memory.
	spread = 2
)

// An index finds entries by their key's hash: chains of entries, linked
// through entry.chain, and their heads. It grows by linear hashing (W. Litwin,
// "Linear Hashing", 1980): an insertion that leaves fewer than spread buckets
// for each entry adds as many and splits as many chains, so there never is a
// moment at which all is rehashed or at which two tables live.
type index struct {
	heads   []*[headsLen]uint32
	buckets uint32 // at least 1
	round   uint32 // the highest power of two that is not above buckets
	size    uint32 // entries
}

func (x *index) init() {
	x.heads = append(x.heads, new([headsLen]uint32))
	x.buckets, x.round = 1, 1
}

// head returns the head of the chain in which an entry of this hash belongs.
func (x *index) head(hash uint64) *uint32 { return x.bucket(x.place(hash)) }

func (x *index) bucket(b uint32) *uint32 { return &x.heads[b>>headsBits][b&(headsLen-1)] }

// place returns the bucket of hash. In a round the buckets below
// buckets-round have been split by one more bit of the hash, the others will
// be.
func (x *index) place(hash uint64) uint32 {
	b := uint32(hash) & (2*x.round - 1)
	if b >= x.buckets {
		b -= x.round
	}
	return b
}

// insert adds entry id.
func (s *shard) insert(id uint32, hash uint64) {
	x := &s.index
	x.size++
	for x.buckets < spread*x.size {
		s.split()
	}
	head := x.head(hash)
	s.entries.at(id).chain = *head
	*head = id
}

// remove takes entry id out of the index.
func (s *shard) remove(id uint32, hash uint64) {
	link := s.index.head(hash)
	for *link != id {
		link = &s.entries.at(*link).chain
	}
	*link = s.entries.at(id).chain
	s.index.size--
}

// split adds a bucket, and moves to it what belongs there of the one chain
// that shared its place until now.
func (s *shard) split() {
	x := &s.index
	if int(x.buckets>>headsBits) == len(x.heads) {
		x.heads = append(x.heads, new([headsLen]uint32))
	}
	added := x.buckets
	from := x.bucket(added - x.round)
	x.buckets++
	if x.buckets == 2*x.round {
		x.round = x.buckets
	}
	to := x.bucket(added)
	for link := from; *link != 0; {
		id := *link
		e := s.entries.at(id)
		if x.place(s.hash(e)) != added {
			link = &e.chain
			continue
		}
		*link, e.chain, *to = e.chain, *to, id
	}
}
