package director

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"saru/internal/control"
	"saru/membership"
	"saru/partition"
)

// An Explanation is what 'saru explain' prints: who takes a flow, and why. All
// but Here is the same on every director that has the same assignment.
type Explanation struct {
	partition.Explanation
	Owner   string          `json:"owner"`   // whom the assignment gives the bucket, or ""
	Epoch   uint64          `json:"epoch"`   // of the assignment, as in Status
	Open    []string        `json:"open_by"` // who takes what opens a flow
	Rest    []string        `json:"rest_by"` // who serves established flows
	Tcpdump string          `json:"tcpdump"` // the command that shows the flow on a director
	Here    HereExplanation `json:"here"`
}

// HereExplanation is what the director that was asked does with the flow.
type HereExplanation struct {
	Node  string `json:"node"`
	Open  bool   `json:"open"`  // it takes packets that open the flow
	Rest  bool   `json:"rest"`  // and the others of TCP and SCTP
	Lease bool   `json:"lease"` // its lease lives; without it nothing is taken

	Packets BucketPackets `json:"bucket_packets"` // of all flows of the bucket, here
}

// ExplainQuery returns the resource that the control socket explains a flow
// at.
func ExplainQuery(proto, client, vip string) string {
	return "/explain?" + url.Values{"proto": {proto}, "client": {client}, "vip": {vip}}.Encode()
}

var errNoShare = errors.New("this node has no share: no addresses are configured in [share]")

// explain says who takes a flow, and why.
func (d *daemon) explain(ctx context.Context, f partition.Flow) (*Explanation, error) {
	s := d.current()
	if len(s.VIPs) == 0 {
		return nil, errNoShare
	}
	divider, err := partition.NewDivider(s.Plan())
	if err != nil {
		return nil, err
	}
	pure, err := divider.Explain(f)
	if err != nil {
		return nil, err
	}
	e := &Explanation{Explanation: pure, Tcpdump: fmt.Sprintf("tcpdump -eni %s '%s'", s.Interface, pure.Capture)}
	e.Here.Node = s.Node
	var bucket membership.BucketInfo
	err = d.engine.ask(ctx, func(now time.Duration) {
		bucket = d.engine.core.Bucket(now, e.Bucket)
		e.Here.Lease = d.engine.core.Snapshot(now).LeaseLeft > 0
	})
	if err != nil {
		return nil, fmt.Errorf("the engine does not answer: %w", err)
	}
	if counts, err := d.filter.Buckets(); err == nil && e.Bucket < len(counts) {
		e.Here.Packets = packetsOf(counts[e.Bucket])
	}
	slices.Sort(bucket.Open)
	slices.Sort(bucket.Rest)
	e.Owner, e.Epoch = bucket.Owner, uint64(bucket.Epoch.Term)<<32|uint64(bucket.Epoch.Counter)
	e.Open, e.Rest = append([]string{}, bucket.Open...), append([]string{}, bucket.Rest...)
	e.Here.Open, e.Here.Rest = slices.Contains(e.Open, s.Node), slices.Contains(e.Rest, s.Node)
	return e, nil
}

// serveExplain answers GET /explain.
func (d *daemon) serveExplain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, err := partition.ParseFlow(q.Get("proto"), q.Get("client"), q.Get("vip"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	e, err := d.explain(ctx, f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	control.JSON(w, e)
}

// Print writes the explanation for people.
func (e *Explanation) Print(w io.Writer) error {
	here := "takes nothing of it"
	switch {
	case !e.Here.Lease:
		here = "takes nothing: its lease has lapsed"
	case e.Here.Open:
		here = "takes it"
	case e.Here.Rest:
		here = "takes what is established of it, and nothing new"
	}
	_, err := fmt.Fprintf(w, `flow      %s
service   %s
sense     %s by %s
bucket    %d
owner     %s, by epoch %d.%d
new       taken by %s
other     taken by %s
rule      %s
why       %s
here      %s %s; of the bucket it has admitted %d new and %d other packets, and refused %d and %d
show      %s
`, e.Flow, e.Service, e.Sense, e.Method, e.Bucket, orNone(e.Owner), e.Epoch>>32, e.Epoch&0xffffffff,
		orNobody(e.Open), orNobody(e.Rest), e.Rule, e.Why, e.Here.Node, here,
		e.Here.Packets.OpenAdmitted, e.Here.Packets.RestAdmitted, e.Here.Packets.OpenRefused, e.Here.Packets.RestRefused, e.Tcpdump)
	return err
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "nobody now"
	}
	return strings.Join(names, " and ")
}
