package queue

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"saru/partition"
	"saru/partition/nft"
)

// A share decides packets by what this director holds. It is the judge of the
// queues; backstop is that of the one behind them.
type share struct {
	stats stats
	start time.Time

	mu         sync.RWMutex
	divider    *partition.Divider
	held       nft.Desired
	superseded superseded
	settling   []atomic.Int64 // until when, per bucket; nanoseconds since start, by the monotonic clock
}

func newShare(d *partition.Divider) *share {
	return &share{
		divider: d, start: time.Now(), settling: make([]atomic.Int64, d.Buckets),
		stats:      stats{buckets: make([]bucketStats, d.Buckets)},
		superseded: superseded{flows: map[flow]time.Time{}},
	}
}

// apply makes d what is held. No decision by what was held before can still
// take effect when it returns.
func (s *share) apply(d nft.Desired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = d
}

// judged ends an apply by what reading the table said: with an error nothing is
// held. Any but nft.ErrGone and nft.ErrUnknown would say that what was held
// before still is.
func (s *share) judged(err error) error {
	if err == nil {
		return nil
	}
	s.apply(nft.Desired{})
	if errors.Is(err, nft.ErrGone) {
		return err
	}
	return fmt.Errorf("queue: %w: %w", nft.ErrUnknown, err)
}

// replan changes what decides, with nothing held, and returns what decided
// before.
func (s *share) replan(d *partition.Divider) (was *partition.Divider) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, s.divider, s.held = s.divider, d, nft.Desired{}
	return was
}

// A view is a share that is held for one reader's batch.
type view struct {
	*share
	now time.Time
}

func (v *view) hold(now time.Time) {
	v.mu.RLock()
	v.now = now
}

func (v *view) release() { v.mu.RUnlock() }

// accept decides a packet, as the maps and the chain moving of partition/nft
// do.
func (v *view) accept(q *queued) bool {
	p, err := partition.ParseHead(q.head, q.whole)
	if err != nil {
		v.stats.malformed.Add(1)
		return false
	}
	d := v.divider.Decide(&p)
	switch d.Class {
	case partition.Open, partition.Rest:
		return v.judge(&p, d)
	case partition.Neighbour:
		v.stats.neighbour.Add(1)
	default:
		v.stats.malformed.Add(1)
	}
	return false
}

func (v *view) judge(p *partition.Packet, d partition.Decision) bool {
	open, rest := v.held.Open.Has(d.Bucket), v.held.Rest.Has(d.Bucket)
	count := &v.stats.buckets[d.Bucket]
	switch {
	case d.Class == partition.Open && open:
		count.openOurs.Add(1)
		return true
	case d.Class == partition.Open:
		count.openForeign.Add(1)
		if rest && p.Opens && v.superseded.note(flowOf(p), v.now) {
			v.stats.superseding.Add(1)
		}
		return false
	case !rest:
		count.restForeign.Add(1)
		return false
	}
	count.restOurs.Add(1)
	if !open && v.superseded.has(flowOf(p), v.now) {
		v.stats.superseded.Add(1)
		return false
	}
	return true
}

// A backstop silences what IPVS does not know, in buckets that settle.
type backstop struct{ view }

func (b *backstop) accept(q *queued) bool {
	p, err := partition.ParseHead(q.head, q.whole)
	if err != nil {
		return true // what judges the packet is before this
	}
	d := b.divider.Decide(&p)
	if d.Class == partition.Rest && b.settles(d.Bucket, b.now) {
		b.stats.silenced.Add(1)
		return false
	}
	return true
}

func (s *share) settle(buckets *partition.Set, until time.Time) {
	for b := range buckets.All() {
		if b < len(s.settling) {
			s.settling[b].Store(int64(until.Sub(s.start)))
		}
	}
}

func (s *share) settles(bucket int, now time.Time) bool {
	return s.settling[bucket].Load() > int64(now.Sub(s.start))
}

func (s *share) settlingAt(now time.Time) (set partition.Set) {
	for b := range s.settling {
		if s.settles(b, now) {
			set.Add(b)
		}
	}
	return set
}

// As the set superseded of partition/nft.
const (
	maxSuperseded  = 65535
	supersededLife = 60 * time.Second
)

// A flow is what names one.
type flow struct {
	client, vip netip.AddrPort
	proto       uint8
}

func flowOf(p *partition.Packet) flow {
	return flow{netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort), p.Proto}
}

// superseded holds the flows of buckets in motion that another director has
// opened anew.
type superseded struct {
	mu    sync.Mutex
	flows map[flow]time.Time // until when
	swept time.Time
}

// note remembers a flow from now on, unless there are too many.
func (s *superseded) note(f flow, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.flows[f]; !known && len(s.flows) >= maxSuperseded {
		if now.Sub(s.swept) < time.Second {
			return false
		}
		s.swept = now
		for f, until := range s.flows {
			if !until.After(now) {
				delete(s.flows, f)
			}
		}
		if len(s.flows) >= maxSuperseded {
			return false
		}
	}
	s.flows[f] = now.Add(supersededLife)
	return true
}

func (s *superseded) has(f flow, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.flows[f]
	return ok && until.After(now)
}
