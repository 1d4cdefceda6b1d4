// Package configtest helps to test that a reference configuration is whole.
//
// What must hold: it is imported by tests only.
package configtest

import (
	"os"
	"slices"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// SameKeys fails t unless the TOML file has exactly the keys that f, a struct
// of sections, has.
func SameKeys(t *testing.T, file string, f any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := toml.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := keys(t, text), keys(t, whole); !slices.Equal(got, want) {
		t.Errorf("%s has the keys\n%q, want\n%q", file, got, want)
	}
}

// keys returns the section and name of each key, sorted.
func keys(t *testing.T, text []byte) []string {
	t.Helper()
	var all map[string]map[string]any
	if err := toml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for section, values := range all {
		for key := range values {
			keys = append(keys, section+"."+key)
		}
	}
	slices.Sort(keys)
	return keys
}
