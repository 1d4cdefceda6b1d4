package ownership

import (
	"encoding/hex"
	"fmt"
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

// A Told is the answer of saru's control socket to GET /ownership.
type Told struct {
	Plan   partition.Plan `json:"plan"`
	Serves string         `json:"serves"` // hex of a bitmap, bucket b is bit b%8 of byte b/8: whose established flows are served here, under a live lease
}

// NewTold returns what a director that serves set under p tells.
func NewTold(p partition.Plan, set partition.Set) *Told {
	return &Told{p, hex.EncodeToString(set.AppendBits(nil, p.Buckets))}
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
	mu      sync.Mutex
	shape   string
	divider *partition.Divider
	serves  partition.Set
	changed [partition.MaxBuckets]time.Time // when each bucket came or went, as far as was seen
	at      time.Time                       // of the last telling
}

// Update takes in what saru told at now. A plan of another shape begins
// everything anew.
func (f *Feed) Update(now time.Time, t *Told) error {
	raw, err := hex.DecodeString(t.Serves)
	if err != nil {
		return fmt.Errorf("ownership: bitmap: %w", err)
	}
	set, err := partition.ParseBits(raw, t.Plan.Buckets)
	if err != nil {
		return fmt.Errorf("ownership: %w", err)
	}
	d, err := partition.NewDivider(t.Plan)
	if err != nil {
		return fmt.Errorf("ownership: %w", err)
	}
	shape := d.Shape()
	f.mu.Lock()
	defer f.mu.Unlock()
	anew := shape != f.shape || now.Sub(f.at) > Stale
	for b := range t.Plan.Buckets {
		if anew || f.serves.Has(b) != set.Has(b) {
			f.changed[b] = now
		}
	}
	f.shape, f.divider, f.serves, f.at = shape, d, set, now
	return nil
}

// Of says whose the connection of k is at now, and since when it is, at least.
func (f *Feed) Of(now time.Time, k *conntable.Key) (Whose, time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.divider == nil || now.Sub(f.at) > Stale {
		return Unknown, time.Time{}
	}
	d := f.divider.Decide(&partition.Packet{
		Src: k.Client.Addr(), Dst: k.Virtual.Addr(), Proto: k.Protocol, SrcPort: k.Client.Port(), DstPort: k.Virtual.Port(),
	})
	if d.Bucket < 0 || d.Division < 0 || k.Template && f.divider.Divisions[d.Division].Sense&(partition.SrcPort|partition.DstPort) != 0 {
		return Unknown, time.Time{}
	}
	since := f.changed[d.Bucket]
	switch {
	case now.Sub(since) < Settle:
		return Unknown, since
	case f.serves.Has(d.Bucket):
		return Here, since
	}
	return Elsewhere, since
}

// Knows reports whether saru tells of its share at now.
func (f *Feed) Knows(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.divider != nil && now.Sub(f.at) <= Stale
}
