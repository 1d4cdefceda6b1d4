package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Kind of flow.
type Kind string

// The kinds of flow.
const (
	Download Kind = "download" // bytes arrive all the time
	Quiet    Kind = "quiet"    // a line each way, then silence
)

// A Flow is one TCP connection's story. Times are of the machine's clock.
type Flow struct {
	Kind      Kind
	ID        int
	Local     string        // the client's address and port
	Every     time.Duration // Quiet: from one line to the next
	Opened    time.Time     // established
	Ended     time.Time     // zero while open
	Lost      string        // why it was lost; empty if it was not
	Abandoned bool          // Download: begun late and not waited for at the end
	Bytes     int64         // received and verified
	Lines     int64         // exchanged
	Progress  time.Time     // when it last had any
	Waiting   bool          // Quiet: for an answer
	Stalls    []Stall
}

// A Stall is a time without progress in which the flow should have had some.
type Stall struct {
	Start  time.Time
	Length time.Duration
}

// stallFloor is the shortest stall that is worth a note: well above the gap
// between two writes of a rate-limited server.
const stallFloor = 300 * time.Millisecond

// A Log keeps every flow's story and the totals of the short requests. Its
// methods may be called from any goroutine.
type Log struct {
	mu    sync.Mutex
	flows []*Flow
	Short ShortStats
	bytes int64
	lines int64
}

// ShortStats are the totals of the short requests.
type ShortStats struct {
	Done    int64 // answered, at the first try or a later one
	Retried int64 // tries that failed and were made again
	Failed  int64 // given up
	Slowest time.Duration
	Reasons map[string]int64 // of the failed tries
}

// NewLog returns an empty Log.
func NewLog() *Log { return &Log{Short: ShortStats{Reasons: map[string]int64{}}} }

func (l *Log) open(f *Flow) *Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.Opened = time.Now()
	f.Progress = f.Opened
	l.flows = append(l.flows, f)
	return f
}

// await marks that the flow now expects something from its peer.
func (l *Log) await(f *Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.Progress, f.Waiting = time.Now(), true
}

// got notes progress: n verified bytes, or one line.
func (l *Log) got(f *Flow, n int64, line bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if d := now.Sub(f.Progress); d >= stallFloor {
		f.Stalls = append(f.Stalls, Stall{f.Progress, d})
	}
	f.Progress = now
	f.Bytes += n
	l.bytes += n
	if line {
		f.Waiting = false
		f.Lines++
		l.lines++
	}
}

func (l *Log) end(f *Flow, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.Ended = time.Now()
	if err != nil {
		f.Lost = Reason(err)
	}
}

// Totals sum up a Log.
type Totals struct {
	Bytes int64 // verified
	Lines int64 // exchanged
	Open  int   // flows
	Lost  int   // flows
	Short ShortStats
}

// Totals returns the sums so far.
func (l *Log) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := Totals{Bytes: l.bytes, Lines: l.lines, Short: l.shortLocked()}
	for _, f := range l.flows {
		switch {
		case f.Lost != "":
			t.Lost++
		case f.Ended.IsZero():
			t.Open++
		}
	}
	return t
}

func (l *Log) shortLocked() ShortStats {
	s := l.Short
	s.Reasons = make(map[string]int64, len(l.Short.Reasons))
	for k, v := range l.Short.Reasons {
		s.Reasons[k] = v
	}
	return s
}

// Flows returns a copy of every flow's story so far.
func (l *Log) Flows() []Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Flow, len(l.flows))
	for i, f := range l.flows {
		out[i] = *f
		out[i].Stalls = slices.Clone(f.Stalls)
	}
	return out
}

// OpenAt reports whether the flow had been established for longer than age at
// time t, and had not ended.
func (f *Flow) OpenAt(t time.Time, age time.Duration) bool {
	return t.Sub(f.Opened) > age && (f.Ended.IsZero() || f.Ended.After(t))
}

// LongestStall returns the longest stall that overlaps [from, to], with one
// that is going on at time now counted as far as it has come.
func (f *Flow) LongestStall(from, to, now time.Time) time.Duration {
	var longest time.Duration
	stalls := f.Stalls
	if f.Ended.IsZero() && (f.Kind == Download || f.Waiting) {
		stalls = append(slices.Clip(stalls), Stall{f.Progress, now.Sub(f.Progress)})
	}
	for _, s := range stalls {
		if s.Start.Before(to) && s.Start.Add(s.Length).After(from) {
			longest = max(longest, s.Length)
		}
	}
	return longest
}

// errWrongBytes is the worst way to lose a flow.
var errWrongBytes = errors.New("wrong bytes")

// Reason puts an error into few words, the same for the same cause.
func Reason(err error) string {
	switch {
	case errors.Is(err, errWrongBytes):
		return errWrongBytes.Error()
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "silence"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed before its time"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

func dial(ctx context.Context, to string, limit time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: limit, KeepAlive: -1} // keep-alive probes would hide an idle connection's fate
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", to, err)
	}
	return c.(*net.TCPConn), nil
}

// abort ends a connection with a reset, so that thousands of them leave no
// TIME_WAIT behind.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// closeOn closes c when ctx ends, and returns what stops the watch.
func closeOn(ctx context.Context, c net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
}
