package syncd

import (
	"bytes"
	"strings"
	"testing"

	"saru/internal/config"
	"saru/ipvs"
)

func TestTableVerdict(t *testing.T) {
	if s := tableVerdict(1 << 12); !strings.Contains(s, "conn_tab_bits=20") {
		t.Errorf("the kernel's default: %s", s)
	}
	if s := tableVerdict(1 << 20); strings.Contains(s, "conn_tab_bits") {
		t.Errorf("a large table: %s", s)
	}
}

// What is in the way is bad input, and named; where IPVS is there, its table is.
func TestCheck(t *testing.T) {
	var out bytes.Buffer
	err := Check(&out, &Settings{Node: "d1", Source: SourceDaemon, Limit: 5})
	if c, dialErr := ipvs.Dial(); dialErr == nil {
		c.Close()
		if err != nil || !strings.Contains(out.String(), "buckets") || !strings.Contains(out.String(), "sync threads") {
			t.Errorf("%v: %s", err, out.String())
		}
		return
	}
	if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "IPVS") || !strings.Contains(out.String(), "node d1") {
		t.Errorf("%v: %s", err, out.String())
	}
}
