package director

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/config"
)

// A kernel that schedules connections from their middle is refused, with the
// setting that does it; one without IPVS, or with other settings, is not.
func TestSloppyIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := notSloppy(dir); err != nil {
		t.Errorf("without IPVS: %v", err)
	}
	set := func(name, value string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sloppy_tcp", "sloppy_sctp"} {
		set("sloppy_tcp", "0")
		set("sloppy_sctp", "0")
		if err := notSloppy(dir); err != nil {
			t.Errorf("both 0: %v", err)
		}
		set(name, "1")
		err := notSloppy(dir)
		if err == nil || config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "net.ipv4.vs."+name+" = 1") {
			t.Errorf("%s = 1: %v", name, err)
		}
	}
}
