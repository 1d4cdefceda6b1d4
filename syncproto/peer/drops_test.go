package peer

import (
	"os"
	"strings"
	"testing"
)

// The operator's guide has each reason.
func TestDropsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range dropNames {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/operating.md does not say what %q is", name)
		}
	}
}
