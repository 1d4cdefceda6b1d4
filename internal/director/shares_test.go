package director

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/config"
)

const twoShares = `
[cluster]
bind = "127.0.0.2:7946"
join = ["127.0.0.3"]
key_file = "KEY"
[[share]]
id = 9
sense = "src-addr"
[[share]]
id = 4
`

func TestSeveralShares(t *testing.T) {
	s, err := load(t, twoShares)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != 4 || s.Sense.String() != "src-port" || s.Bind.String() != "127.0.0.2:7946" || s.tableName() != "saru" || len(s.Others) != 1 {
		t.Fatalf("the first is %+v", s)
	}
	o := s.Others[0]
	if o.ID != 9 || o.Sense.String() != "src-addr" || o.Buckets != 256 || o.tableName() != "saru-9" {
		t.Errorf("the second is %+v", o)
	}
	if o.Bind.String() != "127.0.0.2:7948" || o.Join[0].String() != "127.0.0.3:7948" || o.Metrics != "127.0.0.1:9648" || o.Socket != s.Socket+".9" {
		t.Errorf("it is at %v, %v, %s, %s", o.Bind, o.Join, o.Metrics, o.Socket)
	}
	if o.Seed != s.Seed || o.Shape() == s.Shape() {
		t.Error("the seeds differ, or the shapes do not")
	}
	if s.pick(9) != o || s.pick(4) != s || s.pick(1) != nil {
		t.Error("picked the wrong share")
	}
}

func TestSharesThatAreNotApart(t *testing.T) {
	for change, says := range map[string]string{
		"id = 9\nsense = \"src-addr\"": "id = 4",
		"id = 4":                       "idd = 4",
		"bind = \"127.0.0.2:7946\"":    "bind = \"127.0.0.2:65534\"",
	} {
		_, err := load(t, strings.Replace(twoShares, change, says, 1))
		if err == nil || config.ExitStatus(err) != config.BadInputStatus || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", says, err)
		}
	}
	path := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(path, []byte("[[share"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(path); config.ExitStatus(err) != config.BadInputStatus {
		t.Errorf("%v", err)
	}
}
