package director

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"saru/membership"
	"saru/partition"
)

// The last 1,000 events are kept, in their order, and numbered from 1.
func TestEventsKeepTheLast(t *testing.T) {
	var r events
	if some, _ := r.after(0, 10); len(some) != 0 {
		t.Errorf("%d events before the first", len(some))
	}
	for i := range eventsKept + 234 {
		r.note("test", "%d", i)
	}
	all, _ := r.after(0, eventsKept)
	if len(all) != eventsKept || all[0].Seq != 235 || all[0].Text != "234" || all[eventsKept-1].Seq != eventsKept+234 {
		t.Errorf("%d events from %+v to %+v", len(all), all[0], all[len(all)-1])
	}
	if some, _ := r.after(0, 3); len(some) != 3 || some[0].Seq != eventsKept+232 {
		t.Errorf("the last 3: %+v", some)
	}
	if some, _ := r.after(eventsKept+232, eventsKept); len(some) != 2 || some[0].Seq != eventsKept+233 {
		t.Errorf("those after a number: %+v", some)
	}
	if some, _ := r.after(1<<60, eventsKept); len(some) != 0 {
		t.Errorf("those after the future: %+v", some)
	}
}

// Who follows gets what was and what comes, one JSON object a line.
func TestEventsFollowed(t *testing.T) {
	var r events
	r.note("test", "before")
	_, more := r.after(0, 1)
	var moved partition.Set
	moved.Add(3)
	e := membership.Event{Kind: membership.Moved, From: "d1", To: "d2", Why: "d1 drains", Buckets: moved, Epoch: membership.Epoch{Term: 2, Counter: 5}}
	r.add(fromCore(&e, ""))
	<-more
	w := httptest.NewRecorder()
	r.serve(w, httptest.NewRequest("GET", "/events?after=1", nil))
	var got Event
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if got.Seq != 2 || got.Kind != "moved" || got.From != "d1" || got.To != "d2" || got.Why != "d1 drains" ||
		got.Buckets != "3" || got.Count != 1 || got.Epoch != "2.5" || got.Time.IsZero() || !strings.Contains(got.Text, "from d1 to d2: d1 drains") {
		t.Errorf("%+v", got)
	}
	w = httptest.NewRecorder()
	r.serve(w, httptest.NewRequest("GET", "/events?after=x", nil))
	if w.Code != 400 {
		t.Errorf("a number that is none: %d", w.Code)
	}
}
