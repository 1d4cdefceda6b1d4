package queue

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"saru/partition/nft"
)

// stats is what user space counts, in packets.
type stats struct {
	malformed, neighbour, superseding, superseded, silenced atomic.Uint64

	late    atomic.Uint64 // verdicts on packets that were gone
	buckets []bucketStats
}

type bucketStats struct{ openOurs, openForeign, restOurs, restForeign atomic.Uint64 }

// Stats reads what the kernel and user space counted.
func (f *Filter) Stats() (nft.Stats, error) {
	s, err := f.table.Stats()
	if err != nil {
		return s, err
	}
	own := &f.share.stats
	s.Malformed += own.malformed.Load()
	s.Neighbour += own.neighbour.Load()
	s.Superseding += own.superseding.Load()
	s.Superseded += own.superseded.Load()
	s.Silenced += own.silenced.Load()
	buckets, err := f.Buckets()
	if err != nil {
		return s, err
	}
	for _, b := range buckets {
		s.Foreign += b.OpenForeign + b.RestForeign
	}
	f.share.mu.RLock()
	s.Open, s.Rest = f.share.held.Open, f.share.held.Rest
	f.share.mu.RUnlock()
	s.Settling = f.share.settlingAt(time.Now())
	s.Waiting, s.Overruns, err = f.overruns()
	return s, err
}

// Buckets returns what came for each bucket.
func (f *Filter) Buckets() ([]nft.BucketStats, error) {
	all := make([]nft.BucketStats, len(f.share.stats.buckets))
	for i := range all {
		b := &f.share.stats.buckets[i]
		all[i] = nft.BucketStats{
			OpenOurs: b.openOurs.Load(), OpenForeign: b.openForeign.Load(),
			RestOurs: b.restOurs.Load(), RestForeign: b.restForeign.Load(),
		}
	}
	return all, nil
}

// overruns reads how many packets wait for a verdict, and how many were
// dropped because a queue, or its socket, was full.
func (f *Filter) overruns() (waiting, dropped uint64, err error) {
	buf := make([]byte, 1<<16) // a line has some 60 characters, a namespace few queues
	n, err := f.kernel.ReadAt(buf, 0)
	if n == 0 && err != nil && len(f.readers) > 0 {
		return 0, 0, fmt.Errorf("queue: %w", err)
	}
	first, last := uint64(f.queues.First), uint64(f.queues.First+f.queues.N)
	lines := bufio.NewScanner(bytes.NewReader(buf[:n]))
	for lines.Scan() {
		q, ok := parseCounts(lines.Bytes())
		if ok && q.number >= first && q.number <= last {
			waiting += q.waiting
			dropped += q.dropped
		}
	}
	return waiting, dropped, nil
}

// A line of /proc/net/netfilter/nfnetlink_queue (seq_show in
// net/netfilter/nfnetlink_queue.c): number, reader's port, waiting, copy mode,
// copy range, dropped by the queue's length, dropped by the socket, last
// number, 1.
type counts struct{ number, waiting, dropped uint64 }

func parseCounts(line []byte) (c counts, ok bool) {
	var values [9]uint64
	fields := bytes.Fields(line)
	if len(fields) < len(values) {
		return c, false
	}
	for i := range values {
		v, err := strconv.ParseUint(string(fields[i]), 10, 64)
		if err != nil {
			return c, false
		}
		values[i] = v
	}
	return counts{values[0], values[2], values[5] + values[6]}, true
}
