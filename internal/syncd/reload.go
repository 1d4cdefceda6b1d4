package syncd

import (
	"context"
	"log/slog"
	"reflect"

	"saru/internal/task"
)

// A reloader reads the configuration again when it is asked to, puts in force
// what can be, and says what cannot. It is a task.
type reloader struct {
	Options
	log    *slog.Logger
	engine *Engine
	now    *Settings // in force
}

// Run reloads until ctx ends.
func (r *reloader) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.Hangup:
			r.reload()
		}
	}
}

// Ready is always closed.
func (r *reloader) Ready() <-chan struct{} { return task.Func{}.Ready() }

func (r *reloader) String() string { return "reload" }

// reload puts in force what can be of the configuration as it is now. One
// that is not good changes nothing.
func (r *reloader) reload() {
	s, err := loadAgain(r.Config)
	if err != nil {
		r.log.Error("reload: the configuration is not good; the old one stays in force", "err", err)
		return
	}
	done := []string{}
	if s.Filter.String() != r.now.Filter.String() {
		r.engine.SetFilter(s.Filter)
		done = append(done, "filter")
	}
	if s.Level != r.now.Level {
		r.setLevel(s.Level)
		done = append(done, "control.debug")
	}
	if !reflect.DeepEqual(s.Keys, r.now.Keys) {
		r.engine.SetKeys(s.Keys)
		done = append(done, "sync.key_file")
	}
	r.now.Filter, r.now.Level, r.now.Keys = s.Filter, s.Level, s.Keys
	if left := needRestart(r.now, s); len(left) > 0 {
		r.log.Warn("reload: these changed, and come into force when syncd is restarted", "keys", left)
	}
	r.log.Info("reload: the configuration was read again", "changed", done)
}

func (r *reloader) setLevel(l slog.Level) {
	if r.Level != nil && !r.Debug {
		r.Level.Set(l)
	}
}

// needRestart names what differs and cannot be changed in a running daemon.
func needRestart(a, b *Settings) (keys []string) {
	for _, x := range []struct {
		key string
		of  func(*Settings) any
	}{
		{"sync.node", func(s *Settings) any { return s.Node }},
		{"sync.interface", func(s *Settings) any { return interfaceOf(s) }},
		{"sync.group", func(s *Settings) any { return s.UDP.Group }},
		{"sync.peers", func(s *Settings) any { return s.UDP.Peers }},
		{"kernel.source", func(s *Settings) any { return s.Source }},
		{"kernel.defer", func(s *Settings) any { return s.Defer }},
		{"kernel.limit", func(s *Settings) any { return s.Limit }},
		{"legacy", func(s *Settings) any { return s.Legacy }},
		{"control.socket", func(s *Settings) any { return s.Socket }},
		{"control.saru", func(s *Settings) any { return s.Saru }},
		{"control.metrics", func(s *Settings) any { return s.Metrics }},
	} {
		if !reflect.DeepEqual(x.of(a), x.of(b)) {
			keys = append(keys, x.key)
		}
	}
	return keys
}

// interfaceOf is its name: the rest of it changes by itself.
func interfaceOf(s *Settings) string {
	if s.UDP.Interface == nil {
		return ""
	}
	return s.UDP.Interface.Name
}
