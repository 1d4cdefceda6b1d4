package director

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"saru/partition"
	"saru/partition/nft"
)

// Each key that differs is named as in the file, with both values.
func TestChanges(t *testing.T) {
	a, b := DefaultFile(), DefaultFile()
	if c := changes(&a, &b); len(c) != 0 {
		t.Errorf("of the same: %v", c)
	}
	b.Cluster.Weight, b.Cluster.Ping, b.Share.Sense, b.Control.Debug = 50, []string{"10.9.0.254"}, "src-addr", true
	want := "[{cluster.weight 100 50} {cluster.ping [] [10.9.0.254]} {share.sense src-port src-addr} {control.debug false true}]"
	if got := fmt.Sprint(changes(&a, &b)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A share that is added is spoken of: nothing else says that it is not served.
func TestReloadTellsOfNewShares(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saru.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[share]\nid = 1\n")
	s, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{settings: s, file: s.file, log: slog.New(slog.DiscardHandler), engine: &Engine{}}
	d.Path = path
	for _, step := range []struct{ text, says string }{
		{"[share]\nid = 1\n", "the configuration was reloaded; nothing has changed"},
		{"[[share]]\nid = 1\n[[share]]\nid = 2\n", "share 2 is new; restart saru for it"},
	} {
		write(step.text)
		if err := d.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		last, _ := d.engine.events.after(0, 1)
		if len(last) != 1 || last[0].Text != step.says {
			t.Errorf("it says %+v, want %q", last, step.says)
		}
	}
}

// A filter that divides anew behind rules that do not keeps the share closed.
func TestReplanBoth(t *testing.T) {
	broken := errors.New("broken")
	to := func(err error) func(partition.Plan) error { return func(partition.Plan) error { return err } }
	for _, c := range []struct{ filter, forward, want error }{
		{nil, nil, nil}, {broken, nil, broken}, {nil, broken, nft.ErrUnknown}, {nft.ErrUnknown, nil, nft.ErrUnknown},
	} {
		if err := replanBoth(to(c.filter), to(c.forward))(partition.Plan{}); !errors.Is(err, c.want) {
			t.Errorf("filter %v, forwarding %v: %v, want %v", c.filter, c.forward, err, c.want)
		}
	}
	if err := replanBoth(to(broken), to(nil))(partition.Plan{}); errors.Is(err, nft.ErrUnknown) {
		t.Error("what the filter refused is known")
	}
}
