package director

import (
	"fmt"
	"testing"
	"time"
)

func TestForeigners(t *testing.T) {
	var f foreigners
	if f.saw(time.Second, true, "02:00:00:00:00:07", "", whyKey) == nil {
		t.Error("a frame of a foreigner is no news")
	}
	if n := f.saw(time.Second, false, "10.9.0.3", "", whyKey); n == nil || n.text() != "10.9.0.3 "+whyKey {
		t.Errorf("%+v", n)
	}
	// Now that the address is known, its frames say nothing more.
	if f.saw(2*time.Second, true, "02:00:00:00:00:07", "", whyKey) != nil || f.saw(3*time.Second, false, "10.9.0.3", "d2", whyKey) != nil {
		t.Error("told twice")
	}
	if all := f.now(4 * time.Second); len(all) != 1 || all[0].Name != "d2" || all[0].AgoS != 1 {
		t.Errorf("%+v", all)
	}
	for i := range 100 {
		f.saw(5*time.Second, false, fmt.Sprintf("10.9.1.%d", i), "", whyCluster)
	}
	if all := f.now(5 * time.Second); len(all) != foreignersKept {
		t.Errorf("%d kept", len(all))
	}
	if all := f.now(time.Minute); len(all) != 0 {
		t.Errorf("after their time: %+v", all)
	}
}
