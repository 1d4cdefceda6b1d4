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

// New returns the log of the program called tag. facility is "-" for standard
// error, or the name of a syslog facility; on a machine without a syslog
// socket (a container, an init that keeps standard error) it is standard
// error too.
func New(tag, facility string, level slog.Leveler) (*slog.Logger, error) {
	if facility == "-" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), nil
	}
	pri, ok := facilities[facility]
	if !ok {
		return nil, config.Bad("--log_facility %q: no such facility; use \"-\" for the terminal, or %s", facility, names())
	}
	w, err := syslog.New(pri, tag)
	if err != nil {
		return New(tag, "-", level)
	}
	return slog.New(&syslogHandler{w: w, level: level}), nil
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
	switch msg := b.String(); {
	case r.Level >= slog.LevelError:
		return h.w.Err(msg)
	case r.Level >= slog.LevelWarn:
		return h.w.Warning(msg)
	case r.Level >= slog.LevelInfo:
		return h.w.Info(msg)
	default:
		return h.w.Debug(msg)
	}
}

func (h *syslogHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return h.with(func(t slog.Handler) slog.Handler { return t.WithAttrs(a) })
}

func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return h.with(func(t slog.Handler) slog.Handler { return t.WithGroup(name) })
}

func (h *syslogHandler) with(f func(slog.Handler) slog.Handler) *syslogHandler {
	return &syslogHandler{h.w, h.level, append(slices.Clip(h.wrap), f)}
}

func dropTimeAndLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}
