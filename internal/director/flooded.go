package director

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"saru/internal/task"
)

// A switch that polices floods (storm control) polices what all directors live
// on, and at the peak first. None of them can see it alone: each counts the
// bytes to the shared MAC in the same windows of time and tells the others.
const (
	floodWindow = 10 * time.Second

	// floodFair is what part of another's bytes a director gets at least:
	// receivers that merge segments count the headers of one of them.
	floodFair = 0.95

	// floodLeast is how many bytes of a window are worth a comparison, and
	// floodShort in how many windows in a row somebody must get fewer.
	floodLeast = 256 << 10
	floodShort = 3
)

// Flooded is how many bytes came to the shared MAC in a window of time.
type Flooded struct {
	Window int64  `json:"w"` // numbered since 1970; 0 is none
	Bytes  uint64 `json:"b"`
}

// A floodJudge compares.
type floodJudge struct {
	short int // windows in a row
	says  string
}

// judge compares a window with that of the others, and returns what is wrong.
func (j *floodJudge) judge(own Flooded, peers map[string]Peer) string {
	most, by := own.Bytes, ""
	for name, p := range peers {
		if p.Flooded.Window == own.Window && p.Flooded.Bytes > most {
			most, by = p.Flooded.Bytes, name
		}
	}
	if by == "" || most < floodLeast || float64(own.Bytes) >= floodFair*float64(most) {
		j.short, j.says = 0, ""
		return ""
	}
	if j.short++; j.short >= floodShort {
		j.says = fmt.Sprintf("only %d %% of the bytes to the shared MAC that %s gets come here: does the switch limit floods on this port (storm control)?", own.Bytes*100/most, by)
	}
	return j.says
}

// A lanState is what is wrong with the LAN, as found by watching it. It is safe
// for concurrent use.
type lanState struct {
	mu   sync.Mutex
	says map[string]string // by what found it
}

// set notes what one watcher has found, or "" for nothing, and reports whether
// there is trouble now and was none before.
func (l *lanState) set(watcher, says string) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.says == nil {
		l.says = map[string]string{}
	}
	news = says != "" && l.says[watcher] == ""
	l.says[watcher] = says
	return news
}

// all returns the troubles, in the order of the watchers' names.
func (l *lanState) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []string{}
	for _, watcher := range slices.Sorted(maps.Keys(l.says)) {
		if says := l.says[watcher]; says != "" {
			out = append(out, says)
		}
	}
	return out
}

// lanTrouble notes what a watcher of the LAN has found, and tells people once.
func (d *daemon) lanTrouble(watcher, says string) {
	if d.lanState.set(watcher, says) {
		d.log.Warn("the LAN does not do what it must", "what", says)
		d.engine.events.note(eventLAN, "%s", says)
	}
}

// watchFlood counts, tells and compares until ctx ends. Windows are those of the
// clock on the wall, so that all directors have the same ones.
func (d *daemon) watchFlood(ctx context.Context) error {
	var judge floodJudge
	was, known := uint64(0), false
	for {
		now := time.Now()
		window := now.Truncate(floodWindow)
		if !task.Pause(ctx, window.Add(floodWindow).Sub(now)) {
			return nil
		}
		st, err := d.filter.Stats()
		if err != nil {
			known = false // the table was taken away, and with it a part of the count
			continue
		}
		own := Flooded{window.UnixNano() / int64(floodWindow), st.Bytes - was}
		was = st.Bytes
		if !known {
			known = true // not a whole window
			continue
		}
		d.gossip.spread(func(m *meta) { m.Flooded = own })
		// By then the others have told theirs.
		if !task.Pause(ctx, floodWindow/2) {
			return nil
		}
		d.lanTrouble("flood", judge.judge(own, d.gossip.members()))
	}
}
