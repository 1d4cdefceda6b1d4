package director

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"saru/membership"
)

// eventsKept is how many events are kept: the oldest goes first.
const eventsKept = 1000

// An Event is something that happened, as 'saru events --json' prints it.
type Event struct {
	Seq     uint64    `json:"seq"` // from 1 since the daemon's start
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Epoch   string    `json:"epoch,omitempty"` // that this node followed then
	Node    string    `json:"node,omitempty"`
	From    string    `json:"from,omitempty"`
	To      string    `json:"to,omitempty"`
	Was     string    `json:"was,omitempty"`
	Is      string    `json:"is,omitempty"`
	Why     string    `json:"why,omitempty"`
	Buckets string    `json:"buckets,omitempty"` // as in "0-84,86"
	Count   int       `json:"count,omitempty"`   // of Buckets
	Text    string    `json:"text"`              // all of it for people
}

// Kinds of events that the daemon tells of, besides those of membership.
const (
	eventStart    = "start"
	eventFilter   = "filter"
	eventSyncd    = "syncd"
	eventStranger = "stranger"
	eventSettings = "settings"
	eventLAN      = "lan"
)

// Print writes the event as one line.
func (e *Event) Print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s  %-8s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Kind, e.Text)
	return err
}

// events keeps the last of what happened. It is safe for concurrent use.
type events struct {
	mu   sync.Mutex
	ring [eventsKept]Event
	n    uint64        // added ever
	more chan struct{} // closed by the next one, if somebody waits
}

func (r *events) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Seq = r.n + 1
	if e.Time.IsZero() {
		e.Time = time.Now().Round(0)
	}
	r.ring[r.n%eventsKept] = e
	r.n++
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// note adds an event of the daemon's own.
func (r *events) note(kind, format string, args ...any) {
	r.add(Event{Kind: kind, Text: fmt.Sprintf(format, args...)})
}

// after returns those after number seq that are still kept, the last few of
// them if there are more than limit, and a channel that the next one closes.
func (r *events) after(seq uint64, limit int) ([]Event, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.more == nil {
		r.more = make(chan struct{})
	}
	first := max(seq, r.n-min(r.n, uint64(min(limit, eventsKept))))
	var out []Event
	for i := first; i < r.n; i++ {
		out = append(out, r.ring[i%eventsKept])
	}
	return out, r.more
}

// fromCore is a membership event as we tell it. The protocol knows that this
// node is degraded, and unfit why.
func fromCore(e *membership.Event, unfit string) Event {
	if e.Kind == membership.StateChanged && e.Why == degradedItself {
		e.Why = orElse(unfit, e.Why)
	}
	out := Event{
		Kind: e.Kind.String(), Node: e.Node, From: e.From, To: e.To, Was: e.Was, Is: e.Is, Why: e.Why, Text: e.String(),
	}
	if e.Epoch != (membership.Epoch{}) {
		out.Epoch = e.Epoch.String()
	}
	if !e.Buckets.Empty() {
		out.Buckets, out.Count = e.Buckets.String(), e.Buckets.Len()
	}
	return out
}

// degradedItself is what the protocol says of a node that said so itself.
const degradedItself = "degraded"

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// serve answers GET /events: one JSON object a line, those after ?after=; with
// ?follow=1 also those to come, until the client goes.
func (r *events) serve(w http.ResponseWriter, req *http.Request) {
	var seq uint64
	if text := req.FormValue("after"); text != "" {
		var err error
		if seq, err = strconv.ParseUint(text, 10, 64); err != nil {
			http.Error(w, fmt.Sprintf("after = %q: use the number of an event", text), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/jsonl")
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	for {
		some, more := r.after(seq, eventsKept)
		for i := range some {
			if enc.Encode(&some[i]) != nil {
				return
			}
			seq = some[i].Seq
		}
		if req.FormValue("follow") == "" || flush.Flush() != nil || !wait(req.Context(), more) {
			return
		}
	}
}

func wait(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
