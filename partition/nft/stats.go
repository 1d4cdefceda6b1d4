package nft

import (
	"net"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// Stats is what the kernel counted since Open, in packets, and what it holds.
type Stats struct {
	Accepted    uint64 // admitted as ours; a datagram that came in fragments counts once, when whole
	Fragments   uint64 // fragments let in, to be judged when whole
	Foreign     uint64 // dropped: another director's
	Flood       uint64 // dropped: fragments beyond Config.Fragments
	Pieces      uint64 // dropped: not whole where it is to be judged
	Malformed   uint64 // dropped: cut off before what decides it
	Broadcast   uint64 // dropped: in an Ethernet broadcast, which all directors get
	Lapsed      uint64 // dropped: ours, but no live lease
	Own         uint64 // for a VIP to the interface's own MAC: served
	Neighbour   uint64 // neighbour discovery, left for packet sockets
	Superseding uint64 // of Foreign: these open a flow of a bucket that moves
	Superseded  uint64 // dropped: rest of such a flow
	Silenced    uint64 // dropped by the backstop
	Leaks       uint64 // dropped: from a real server, and nobody had translated it
	Armed       uint64 // heartbeats armed
	Confirmed   uint64 // leases renewed

	// Of a Filter with Queues only.
	Waiting  uint64 // for a verdict, now
	Overruns uint64 // dropped: more than user space could judge

	// Bytes is what all packets had that were judged, those of others too, from
	// their IP headers on. Every director on the LAN gets the same, but for some
	// 4 %: a receiver may merge segments, and counts the headers of one. 0 with
	// Queues.
	Bytes uint64

	OwnSender net.HardwareAddr // last sender to the own MAC within an hour, or nil
	Open      partition.Set
	Rest      partition.Set
	Settling  partition.Set
	LeaseLeft time.Duration // 0 when lapsed
	Intact    bool          // as Verify says
}

type counts [len(counterNames)]uint64 // in the order of counterNames

// BucketStats is what came for one bucket since Open, in packets judged; they
// may have met a lapsed lease, or have been superseded. Of the packets that
// came while an element was replaced some are missing.
type BucketStats struct {
	OpenOurs, OpenForeign uint64 // that open a flow
	RestOurs, RestForeign uint64 // of the rest
}

func (s *BucketStats) add(c bucketCount) {
	open, rest := &s.OpenForeign, &s.RestForeign
	if c.holding == owned {
		open = &s.OpenOurs
	}
	if c.holding >= inMotion {
		rest = &s.RestOurs
	}
	*open += c.packets[0]
	*rest += c.packets[1]
}

// A bucketCount is what a bucket's elements of the maps open and rest counted.
type bucketCount struct {
	holding holding
	packets [2]uint64
	bytes   uint64 // of both
}

// counted notes what was just read. A counter that went back belongs to a new
// element: what its predecessor had shown is kept.
func (f *Filter) counted(now []bucketCount) {
	for b, c := range now {
		if was := f.lastBuckets[b]; c.holding != was.holding || c.packets[0] < was.packets[0] || c.packets[1] < was.packets[1] {
			f.earlierBuckets[b].add(was)
			f.earlierBytes += was.bytes
		}
	}
	f.lastBuckets = now
}

func (f *Filter) bytesLocked() uint64 {
	sum := f.earlierBytes
	for _, c := range f.lastBuckets {
		sum += c.bytes
	}
	return sum
}

// Buckets returns what came for each bucket. Error: ErrGone, or the kernel's.
func (f *Filter) Buckets() ([]BucketStats, error) {
	f.read.Lock()
	defer f.read.Unlock()
	if _, err := f.readBuckets(); err != nil {
		return nil, f.gone("read buckets", err)
	}
	return f.bucketsLocked(), nil
}

func (f *Filter) bucketsLocked() []BucketStats {
	all := slices.Clone(f.earlierBuckets)
	for b := range all {
		all[b].add(f.lastBuckets[b])
	}
	return all
}

// Stats reads the kernel. Error: ErrGone, or the kernel's.
func (f *Filter) Stats() (Stats, error) {
	var s Stats
	f.read.Lock()
	defer f.read.Unlock()
	if err := f.readCounters(); err != nil {
		return s, err
	}
	for i, to := range [...]*uint64{
		&s.Accepted, &s.Fragments, &s.Flood, &s.Pieces, &s.Malformed, &s.Broadcast, &s.Lapsed, &s.Own, &s.Neighbour,
		&s.Superseding, &s.Superseded, &s.Silenced, &s.Armed, &s.Confirmed, &s.Leaks,
	} {
		*to = f.earlier[i] + f.last[i]
	}
	d, err := f.readBuckets()
	if err != nil {
		return s, f.gone("read buckets", err)
	}
	s.Open, s.Rest, s.Bytes = d.Open, d.Rest, f.bytesLocked()
	for _, b := range f.bucketsLocked() {
		s.Foreign += b.OpenForeign + b.RestForeign
	}
	if s.Settling, err = f.readSettling(); err != nil {
		return s, f.gone("read buckets", err)
	}
	lease, err := f.rconn.GetSetElements(f.table.lease)
	if err != nil {
		return s, f.gone("read the lease", err)
	}
	for _, e := range lease {
		s.LeaseLeft = max(s.LeaseLeft, e.Expires)
	}
	if s.OwnSender, err = f.readSender(); err != nil {
		return s, f.gone("read senders", err)
	}
	s.Intact, err = f.verifyLocked()
	return s, err
}

// readCounters reads the named counters.
func (f *Filter) readCounters() error {
	objs, err := f.rconn.GetNamedObjects(f.table.Table)
	if err != nil {
		return f.gone("read counters", err)
	}
	if len(objs) == 0 {
		return f.gone("read counters", unix.ENOENT)
	}
	for _, o := range objs {
		named, _ := o.(*nftables.NamedObj)
		if named == nil {
			continue
		}
		counter, _ := named.Obj.(*expr.Counter)
		if i := slices.Index(counterNames[:], named.Name); i >= 0 && counter != nil {
			f.last[i] = counter.Packets
		}
	}
	return nil
}

// readSender returns who last sent to the own MAC, or nil.
func (f *Filter) readSender() (sender net.HardwareAddr, err error) {
	senders, err := f.rconn.GetSetElements(f.table.senders)
	if err != nil {
		return nil, err
	}
	var newest time.Duration
	for _, e := range senders {
		if e.Expires > newest && len(e.Key) >= 6 {
			newest, sender = e.Expires, e.Key[:6]
		}
	}
	return sender, nil
}
