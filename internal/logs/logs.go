// Package logs sets up a daemon's log as its command line asks: to the
// terminal or to a syslog facility, at a level that may change.
package logs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"slices"
	"strings"

	"saru/internal/config"
)

var facilities = map[string]syslog.Priority{
	"daemon": syslog.LOG_DAEMON, "user": syslog.LOG_USER,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// New returns the log of the program called tag, and what ends it: that waits
// for a moment until all is written. facility is "-" for standard error, or the
// name of a syslog facility; on a machine without a syslog socket (a container,
// an init that keeps standard error) it is standard error too.
//
// Logging never waits for whoever reads the log.
func New(tag, facility string, level slog.Leveler) (*slog.Logger, func(), error) {
	if facility == "-" {
		log, end := toTerminal(os.Stderr, level)
		return log, end, nil
	}
	pri, ok := facilities[facility]
	if !ok {
		return nil, nil, config.Bad("--log_facility %q: no such facility; use \"-\" for the terminal, or %s", facility, names())
	}
	w, err := syslog.New(pri, tag)
	if err != nil {
		return New(tag, "-", level)
	}
	q := newQueue()
	return slog.New(&syslogHandler{q: q, w: w, level: level}), q.close, nil
}

func toTerminal(w io.Writer, level slog.Leveler) (*slog.Logger, func()) {
	q := newQueue()
	write := func(text string) error { _, err := io.WriteString(w, text); return err }
	return slog.New(slog.NewTextHandler(queueWriter{q, write}, &slog.HandlerOptions{Level: level})), q.close
}

func names() string {
	var n []string
	for k := range facilities {
		n = append(n, k)
	}
	slices.Sort(n)
	return strings.Join(n, ", ")
}

// A syslogHandler writes records as text to syslog, at syslog's own levels.
type syslogHandler struct {
	q     *queue
	w     *syslog.Writer
	level slog.Leveler
	wrap  []func(slog.Handler) slog.Handler
}

func (h *syslogHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	var b bytes.Buffer
	var t slog.Handler = slog.NewTextHandler(io.Writer(&b), &slog.HandlerOptions{Level: h.level, ReplaceAttr: dropTimeAndLevel})
	for _, w := range h.wrap {
		t = w(t)
	}
	if err := t.Handle(ctx, r); err != nil {
		return err
	}
	h.q.put(line{h.at(r.Level), b.String()})
	return nil
}

// at returns what writes at the level of syslog's that l is.
func (h *syslogHandler) at(l slog.Level) func(string) error {
	switch {
	case l >= slog.LevelError:
		return h.w.Err
	case l >= slog.LevelWarn:
		return h.w.Warning
	case l >= slog.LevelInfo:
		return h.w.Info
	default:
		return h.w.Debug
	}
}

func (h *syslogHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return h.with(func(t slog.Handler) slog.Handler { return t.WithAttrs(a) })
}

func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return h.with(func(t slog.Handler) slog.Handler { return t.WithGroup(name) })
}

func (h *syslogHandler) with(f func(slog.Handler) slog.Handler) *syslogHandler {
	return &syslogHandler{h.q, h.w, h.level, append(slices.Clip(h.wrap), f)}
}

func dropTimeAndLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}
