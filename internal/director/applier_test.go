package director

import (
	"log/slog"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"
)

// settling is a Filter that takes everything and notes what settles.
type settling struct {
	Filter
	at map[time.Duration]partition.Set
}

func (s *settling) Apply(nft.Desired) error { return nil }

func (s *settling) Settle(b *partition.Set, d time.Duration) error {
	s.at[d] = *b
	return nil
}

// What a living director gives may be unknown here for as long as that one
// lingers; of a dead one's buckets only its last news is still to come.
func TestUnknownConnectionsSettle(t *testing.T) {
	set := func(lo, hi int) partition.Set {
		return partition.FullSet(hi + 1).Minus(partition.FullSet(lo))
	}
	f := &settling{}
	a := newApplier(slog.New(slog.DiscardHandler), f, true, &Engine{})
	for _, step := range []struct {
		what        string
		ask         applyRequest
		moved, dead partition.Set
	}{
		{"a dead director's", applyRequest{set(0, 9), set(0, 9), set(0, 9)}, partition.Set{}, set(0, 9)},
		{"ready to take a living one's", applyRequest{set(0, 9), set(0, 19), partition.Set{}}, set(10, 19), partition.Set{}},
		{"taken, and a dead one's", applyRequest{set(0, 29), set(0, 29), set(10, 29)}, set(10, 19), set(20, 29)},
		{"given away", applyRequest{set(0, 4), set(0, 29), partition.Set{}}, partition.Set{}, partition.Set{}},
		{"let go", applyRequest{set(0, 4), set(0, 4), partition.Set{}}, partition.Set{}, partition.Set{}},
	} {
		f.at = map[time.Duration]partition.Set{}
		if _, known := a.change(step.ask); !known {
			t.Fatal(step.what)
		}
		if f.at[movedFor] != step.moved || f.at[settleFor] != step.dead {
			t.Errorf("%s: %v settle as moved and %v as a dead one's; want %v and %v", step.what, f.at[movedFor], f.at[settleFor], step.moved, step.dead)
		}
	}
}
