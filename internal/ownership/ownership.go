package ownership

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"saru/conntable"
	"saru/partition"
)

const (
	// Settle is for how long after it came or went a bucket is nobody's for
	// certain. It is longer than two directors serve one.
	Settle = 5 * time.Second
	// Stale is after how long what saru told is not believed any more: it may
	// have lost its lease since.
	Stale = 2 * time.Second
)

// A Told is the answer of saru's control socket to GET /ownership: what a
// director serves of a share. Under the first of several shares are the others,
// unless they do not answer.
type Told struct {
	Plan   partition.Plan `json:"plan"`
	Serves string         `json:"serves"` // hex of a bitmap, bucket b is bit b%8 of byte b/8: whose established flows are served here, under a live lease
	Others []Told         `json:"others,omitempty"`
}

// NewTold returns what a director that serves set under p tells.
func NewTold(p partition.Plan, set partition.Set) *Told {
	return &Told{Plan: p, Serves: hex.EncodeToString(set.AppendBits(nil, p.Buckets))}
}

// A Whose says where a connection's packets go.
type Whose uint8

// Here, to another director, or not known.
const (
	Unknown Whose = iota
	Here
	Elsewhere
)

// A Feed remembers what saru told. The zero Feed knows nothing. It is safe for
// concurrent use.
type Feed struct {
	mu     sync.Mutex
	shares []*share
	at     time.Time // of the last telling
}

// A share is what saru told of one.
type share struct {
	shape   string // no two shares have one: their addresses do not overlap
	divider *partition.Divider
	serves  partition.Set
	changed []time.Time // when each bucket came or went, as far as was seen
}

// maxShares bounds what is believed of saru; it has at most 16.
const maxShares = 64

// Update takes in what saru told at now. A share that was not told of the last
// time, or had another shape, begins anew. What cannot be understood changes
// nothing.
func (f *Feed) Update(now time.Time, t *Told) error {
	if len(t.Others) >= maxShares {
		return fmt.Errorf("ownership: %d shares are more than %d", len(t.Others)+1, maxShares)
	}
	told := make([]*share, 0, 1+len(t.Others))
	for i := range 1 + len(t.Others) {
		one := t
		if i > 0 {
			one = &t.Others[i-1]
		}
		s, err := newShare(one)
		if err != nil {
			return err
		}
		told = append(told, s)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range told {
		s.follow(f.before(now, s.shape), now)
	}
	f.shares, f.at = told, now
	return nil
}

func newShare(t *Told) (*share, error) {
	raw, err := hex.DecodeString(t.Serves)
	if err != nil {
		return nil, fmt.Errorf("ownership: bitmap: %w", err)
	}
	set, err := partition.ParseBits(raw, t.Plan.Buckets)
	if err != nil {
		return nil, fmt.Errorf("ownership: %w", err)
	}
	d, err := partition.NewDivider(t.Plan)
	if err != nil {
		return nil, fmt.Errorf("ownership: %w", err)
	}
	return &share{shape: d.Shape(), divider: d, serves: set}, nil
}

// before returns what the last telling said of the share, nil if it said
// nothing, or is too old to count.
func (f *Feed) before(now time.Time, shape string) *share {
	for _, s := range f.shares {
		if s.shape == shape && now.Sub(f.at) <= Stale {
			return s
		}
	}
	return nil
}

// follow notes which buckets came or went since before.
func (s *share) follow(before *share, now time.Time) {
	if before != nil {
		s.changed = before.changed // which before needs no more
	} else {
		s.changed = make([]time.Time, s.divider.Buckets)
	}
	for b := range s.divider.Buckets {
		if before == nil || before.serves.Has(b) != s.serves.Has(b) {
			s.changed[b] = now
		}
	}
}

// Of says whose the connection of k is at now, and since when it is, at least.
func (f *Feed) Of(now time.Time, k *conntable.Key) (Whose, time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.of(now, k.Virtual.Addr())
	if s == nil {
		return Unknown, time.Time{}
	}
	d := s.divider.Decide(&partition.Packet{
		Src: k.Client.Addr(), Dst: k.Virtual.Addr(), Proto: k.Protocol, SrcPort: k.Client.Port(), DstPort: k.Virtual.Port(),
	})
	if d.Bucket < 0 || d.Division < 0 || k.Template && s.divider.Divisions[d.Division].Sense&(partition.SrcPort|partition.DstPort) != 0 {
		return Unknown, time.Time{}
	}
	since := s.changed[d.Bucket]
	switch {
	case now.Sub(since) < Settle:
		return Unknown, since
	case s.serves.Has(d.Bucket):
		return Here, since
	}
	return Elsewhere, since
}

// of returns the share that has the virtual address, nil if none is known to.
func (f *Feed) of(now time.Time, virtual netip.Addr) *share {
	if now.Sub(f.at) > Stale {
		return nil
	}
	for _, s := range f.shares {
		if s.divider.IsVIP(virtual) {
			return s
		}
	}
	return nil
}

// Shares returns of how many shares saru tells at now.
func (f *Feed) Shares(now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.at) > Stale {
		return 0
	}
	return len(f.shares)
}
