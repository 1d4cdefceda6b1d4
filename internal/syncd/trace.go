package syncd

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"saru/conntable"
	"saru/internal/config"
)

// A Path is which way an update passes.
type Path string

// Paths.
const (
	PathCaptured    Path = "captured"     // from the kernel
	PathSent        Path = "sent"         // to the peers
	PathReceived    Path = "received"     // from a peer
	PathInjected    Path = "injected"     // to the kernel
	PathLegacyHeard Path = "legacy_heard" // from a legacy director
	PathLegacyTold  Path = "legacy_told"  // to legacy directors
)

var paths = []Path{PathCaptured, PathSent, PathReceived, PathInjected, PathLegacyHeard, PathLegacyTold}

const (
	// maxTracers is how many may look at a time.
	maxTracers = 8
	// traceBuffer is how many events wait for one who looks; what is more is
	// dropped and counted.
	traceBuffer = 4096
	// namesFor is how long the names of nodes are good for.
	namesFor = time.Second
)

// A TraceEvent is an update as it passes, or how many were dropped since the
// event before, because whoever looks is too slow.
type TraceEvent struct {
	At      time.Time `json:"at"`
	Path    Path      `json:"path,omitempty"`
	What    string    `json:"what,omitempty"` // new, change, refresh, close; or why it changed nothing: same, stale, late, full, absurd
	Node    string    `json:"node,omitempty"` // whose version it is
	Dropped uint64    `json:"dropped,omitempty"`
	*Conn
}

// A tracer hands on updates to those who look. It costs one atomic read while
// nobody does.
type tracer struct {
	lookers atomic.Int32
	mu      sync.Mutex
	all     []*looker
}

type looker struct {
	pick    func(*conntable.Record) bool
	paths   []Path // all if empty
	events  chan traced
	dropped atomic.Uint64
}

type traced struct {
	at   time.Time
	path Path
	what string
	r    conntable.Record
}

// on reports whether anybody looks.
func (t *tracer) on() bool { return t.lookers.Load() > 0 }

// passed tells those who look that r passes.
func (t *tracer) passed(path Path, what string, r *conntable.Record) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.all {
		if len(l.paths) > 0 && !slices.Contains(l.paths, path) || !l.pick(r) {
			continue
		}
		select {
		case l.events <- traced{now, path, what, *r}:
		default:
			l.dropped.Add(1)
		}
	}
}

// merged tells of a record that was given to the table.
func (t *tracer) merged(path Path, r *conntable.Record, res *conntable.Result) {
	what := res.Outcome.String()
	switch {
	case res.Outcome == conntable.Extended:
		what = "refresh"
	case res.Outcome != conntable.Added && res.Outcome != conntable.Updated:
	case r.Deleted:
		what = "close"
	case res.Outcome == conntable.Added || res.Prev.Deleted:
		what = "new"
	case res.Prev.State != r.State || !res.Prev.SameTo:
		what = "change"
	default:
		what = "refresh"
	}
	t.passed(path, what, r)
}

// told tells of a record that goes out, whose history is no matter there.
func (t *tracer) told(path Path, r *conntable.Record) {
	if r.Deleted {
		t.passed(path, "close", r)
	} else {
		t.passed(path, "state", r)
	}
}

func (e *Engine) traceInjected(r *conntable.Record) {
	if e.trace.on() {
		e.trace.told(PathInjected, r)
	}
}

func (t *tracer) add(l *looker) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= maxTracers {
		return false
	}
	t.all = append(t.all, l)
	t.lookers.Add(1)
	return true
}

func (t *tracer) remove(l *looker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = slices.DeleteFunc(t.all, func(x *looker) bool { return x == l })
	t.lookers.Add(-1)
}

// ParsePaths checks the list of paths of GET /trace.
func ParsePaths(v url.Values) (out []Path, err error) {
	for _, s := range strings.FieldsFunc(v.Get("path"), func(c rune) bool { return c == ',' }) {
		if !slices.Contains(paths, Path(s)) {
			return nil, config.Bad("--path %q: use some of %v, with commas between", s, paths)
		}
		out = append(out, Path(s))
	}
	return out, nil
}

// serveTrace writes events, one a line, until the asker goes away.
func (e *Engine) serveTrace(w http.ResponseWriter, r *http.Request) {
	pick, err := ParseFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	only, err := ParsePaths(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l := &looker{pick: func(r *conntable.Record) bool { return pick.Matches(r, e.self) }, paths: only, events: make(chan traced, traceBuffer)}
	if !e.trace.add(l) {
		http.Error(w, fmt.Sprintf("%d others trace already; end one of them", maxTracers), http.StatusTooManyRequests)
		return
	}
	defer e.trace.remove(l)
	w.Header().Set("Content-Type", "application/jsonl")
	flush := http.NewResponseController(w)
	flush.Flush() // so that the asker knows that it is there
	bw := bufio.NewWriterSize(w, 64<<10)
	out := traceWriter{enc: json.NewEncoder(bw), names: nodeNames{e: e}}
	for {
		select {
		case <-r.Context().Done():
			return
		case ev := <-l.events:
			err := out.write(&ev, l.dropped.Swap(0))
			if len(l.events) == 0 {
				err = cmp.Or(err, bw.Flush(), flush.Flush())
			}
			if err != nil {
				return
			}
		}
	}
}

type traceWriter struct {
	enc   *json.Encoder
	names nodeNames
}

func (w *traceWriter) write(ev *traced, dropped uint64) error {
	if dropped > 0 {
		if err := w.enc.Encode(TraceEvent{At: ev.at, Dropped: dropped}); err != nil {
			return err
		}
	}
	c := w.names.e.conn(&ev.r)
	return w.enc.Encode(TraceEvent{At: ev.at, Path: ev.path, What: ev.what, Node: w.names.of(ev.r.Version.Node, ev.at), Conn: &c})
}

// nodeNames knows whose versions are whose.
type nodeNames struct {
	e     *Engine
	at    time.Time
	names map[conntable.NodeID]string
}

// of returns the name of a node, or its number if it was not heard.
func (n *nodeNames) of(id conntable.NodeID, now time.Time) string {
	if n.names == nil || now.Sub(n.at) > namesFor {
		n.at = now
		n.names = map[conntable.NodeID]string{n.e.self: n.e.node, legacyNode: "legacy"}
		for _, p := range n.e.session.Peers() {
			n.names[conntable.NodeIDOf(p.Name)] = p.Name
		}
	}
	if name, ok := n.names[id]; ok {
		return name
	}
	return fmt.Sprintf("%08x", uint32(id))
}

// Print writes ev on one line.
func (ev *TraceEvent) Print(w io.Writer) error {
	at := ev.At.Format("15:04:05.000000")
	if ev.Dropped > 0 {
		_, err := fmt.Fprintf(w, "%s ... %d updates dropped: this terminal is too slow; use filters\n", at, ev.Dropped)
		return err
	}
	if _, err := fmt.Fprintf(w, "%s %-12s %-7s %-10s ", at, ev.Path, ev.What, ev.Node); err != nil {
		return err
	}
	return ev.Conn.Print(w)
}
