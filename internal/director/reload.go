package director

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"saru/internal/config"
	"saru/membership"
	"saru/partition"
)

// A change is a key of the configuration whose value has changed.
type change struct {
	key     string
	was, is any
}

// changes returns the keys in which two configurations differ, in their order
// in the file.
func changes(was, is *File) (all []change) {
	var walk func(prefix string, a, b reflect.Value)
	walk = func(prefix string, a, b reflect.Value) {
		for i := range a.NumField() {
			key, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("toml"), ",")
			x, y := a.Field(i), b.Field(i)
			switch {
			case !a.Type().Field(i).IsExported():
			case x.Kind() == reflect.Struct:
				walk(prefix+key+".", x, y)
			case !reflect.DeepEqual(x.Interface(), y.Interface()):
				all = append(all, change{prefix + key, show(x), show(y)})
			}
		}
	}
	walk("", reflect.ValueOf(*was), reflect.ValueOf(*is))
	return all
}

// show returns a value as people write it: a section that is not there is none.
func show(v reflect.Value) any {
	if v.Kind() != reflect.Pointer {
		return v.Interface()
	}
	if v.IsNil() {
		return "none"
	}
	return fmt.Sprintf("%+v", v.Elem().Interface())
}

// watchReload reloads the configuration at each SIGHUP until ctx ends.
func (d *daemon) watchReload(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.hangup:
		}
		if err := d.reload(ctx); err != nil {
			d.log.Error("the configuration was not reloaded; all stays as it is", "err", err)
			d.engine.events.note(eventSettings, "the configuration was not reloaded: %v", err)
		}
	}
}

// reload takes over what can change at run time, and names what cannot.
func (d *daemon) reload(ctx context.Context) error {
	next, err := Load(d.Path)
	if err != nil {
		return err
	}
	if next = next.pick(d.settings.ID); next == nil {
		return config.Bad("share %d is not in the configuration any more; restart saru for it", d.settings.ID)
	}
	all := changes(&d.file, &next.file)
	d.file = next.file
	for _, c := range all {
		switch c.key {
		case "cluster.weight":
			if err := d.setWeight(ctx, next.Weight); err != nil {
				return err
			}
		case "cluster.ping":
			d.pinger.change(next.Ping)
			d.told("%s is %v, was %v", c.key, c.is, c.was)
		case "control.debug":
			d.Level.Set(d.level(next.Debug))
			d.told("%s is %v, was %v", c.key, c.is, c.was)
		default:
			d.told("%s has changed from %v to %v; restart saru for it", c.key, c.was, c.is)
		}
	}
	added := d.settings.unserved(next)
	for _, id := range added {
		d.told("share %d is new; restart saru for it", id)
	}
	if len(all)+len(added) == 0 {
		d.told("the configuration was reloaded; nothing has changed")
	}
	return nil
}

// unserved returns the shares of another configuration that this one has not. Of
// several shares the first tells of them.
func (s *Settings) unserved(next *Settings) (ids []int) {
	for _, id := range next.ids {
		if s.rank == 0 && id != s.ID && !slices.Contains(s.ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// told logs a change of settings, and keeps it as an event.
func (d *daemon) told(format string, args ...any) {
	d.log.Info(fmt.Sprintf(format, args...))
	d.engine.events.note(eventSettings, format, args...)
}

// setWeight changes this node's weight until the next start, or reload of
// another one.
func (d *daemon) setWeight(ctx context.Context, weight int) error {
	if weight < 1 || weight > partition.MaxWeight {
		return config.Bad("weight %d: use 1 to %d; 'saru drain' gives the share away", weight, partition.MaxWeight)
	}
	if err := d.tell(ctx, func(c *membership.Core, now time.Duration) { c.SetWeight(now, uint16(weight)) }); err != nil {
		return err
	}
	d.gossip.tellWeight(weight)
	d.told("the weight of this node is %d", weight)
	return nil
}

func (d *daemon) level(debug bool) slog.Level {
	if debug || d.Debug {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
