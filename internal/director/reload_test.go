package director

import (
	"fmt"
	"testing"
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
