package director

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"saru/internal/control"
	"saru/partition"
	"saru/partition/nft"
)

// Buckets is what 'saru buckets' prints: who has each bucket of the share, and
// what came for it here since the start.
type Buckets struct {
	Node    string         `json:"node"`
	Buckets []BucketStatus `json:"buckets"`
}

// BucketStatus is one bucket. Packets count where they were judged; a lapsed
// lease may have stopped them after that.
type BucketStatus struct {
	Bucket int           `json:"bucket"`
	Owner  string        `json:"owner"` // by the assignment, or ""
	Open   bool          `json:"open"`  // packets that open a flow are taken here
	Rest   bool          `json:"rest"`  // and others of TCP and SCTP
	Count  BucketPackets `json:"packets"`
}

// BucketPackets is what came for a bucket.
type BucketPackets struct {
	OpenAdmitted uint64 `json:"open_admitted"`
	OpenRefused  uint64 `json:"open_refused"`
	RestAdmitted uint64 `json:"rest_admitted"`
	RestRefused  uint64 `json:"rest_refused"`
}

func packetsOf(s nft.BucketStats) BucketPackets {
	return BucketPackets{s.OpenOurs, s.OpenForeign, s.RestOurs, s.RestForeign}
}

// buckets collects Buckets.
func (d *daemon) buckets(ctx context.Context) (*Buckets, error) {
	if d.filter == nil {
		return nil, errNoShare
	}
	counts, err := d.filter.Buckets()
	if err != nil {
		return nil, err
	}
	b := &Buckets{Node: d.settings.Node, Buckets: make([]BucketStatus, len(counts))}
	err = d.engine.ask(ctx, func(now time.Duration) {
		s := d.engine.core.Snapshot(now)
		for i := range b.Buckets {
			b.Buckets[i] = BucketStatus{i, d.engine.core.Bucket(now, i).Owner, s.Open.Has(i), s.Rest.Has(i), packetsOf(counts[i])}
		}
	})
	return b, err
}

// serveBuckets answers GET /buckets.
func (d *daemon) serveBuckets(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	b, err := d.buckets(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	control.JSON(w, b)
}

// Print writes the buckets for people: those that packets came for.
func (b *Buckets) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "BUCKET\tOWNER\tHERE\tNEW ADMITTED\tNEW REFUSED\tOTHER ADMITTED\tOTHER REFUSED")
	var quiet partition.Set
	for _, s := range b.Buckets {
		if s.Count == (BucketPackets{}) {
			quiet.Add(s.Bucket)
			continue
		}
		here := "-"
		switch {
		case s.Open:
			here = "open"
		case s.Rest:
			here = "rest"
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%d\t%d\t%d\t%d\n", s.Bucket, orNone(s.Owner), here,
			s.Count.OpenAdmitted, s.Count.OpenRefused, s.Count.RestAdmitted, s.Count.RestRefused)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if !quiet.Empty() {
		fmt.Fprintf(w, "nothing came to %s for %v\n", b.Node, quiet)
	}
	return nil
}
