// Package vectors reads the test vectors of docs/protocol.md, for the tests of
// the packages that they are of: what the document says is what the code does.
//
// What must hold: no vector is left out. A test fails that does not read all of
// its section, and a section that no test names fails every test.
package vectors

import (
	"encoding/hex"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The sections of the test vectors, each made anew by the tests of one package.
const (
	Sealed   = "Sealed"                  // internal/seal
	Digests  = "Connections and digests" // conntable
	Messages = "Messages"                // syncproto/peer, as are the next
	Groups   = "Groups"
	Others   = "Other messages"
	Pull     = "A pull"
)

const (
	chapter = "\n## 5. Test vectors\n"
	fence   = "```"
)

// begin is how a vector begins: its name, and the first line of its value.
var begin = regexp.MustCompile(`^(\S(?:.*?\S)?) {2,}(\S.*)$`)

// Vectors are the vectors of all sections, of which a test reads those of its
// own, and others too.
type Vectors struct {
	tb     testing.TB
	values map[string]string
	read   map[string]bool
}

// Load reads the document at path. When the test ends it fails unless all of
// section has been read.
func Load(tb testing.TB, path, section string) *Vectors {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), chapter)
	if !found || strings.Contains(rest, "\n## ") {
		tb.Fatalf("%s does not end with the chapter %q", path, strings.TrimSpace(chapter))
	}
	v := &Vectors{tb: tb, values: map[string]string{}, read: map[string]bool{}}
	own := v.parse(rest, section)
	if len(own) == 0 {
		tb.Fatalf("%s has no vectors in %q", path, section)
	}
	tb.Cleanup(func() {
		for _, name := range own {
			if !v.read[name] && !tb.Failed() {
				tb.Errorf("nobody looked at %q", name)
			}
		}
	})
	return v
}

// parse reads the chapter, and returns the names of the vectors of one section.
func (v *Vectors) parse(text, section string) (own []string) {
	v.tb.Helper()
	known := []string{Sealed, Digests, Messages, Groups, Others, Pull}
	var in, name string
	code := false
	for line := range strings.SplitSeq(text, "\n") {
		title, heading := strings.CutPrefix(line, "### ")
		switch {
		case line == fence:
			code, name = !code, ""
		case !code && heading:
			in = title
			if !slices.Contains(known, in) {
				v.tb.Fatalf("section %q of the test vectors is no package's", in)
			}
		case code:
			line, _, _ = strings.Cut(line, ";")
			if m := begin.FindStringSubmatch(line); m != nil {
				name = m[1]
				if _, twice := v.values[name]; twice || in == "" {
					v.tb.Fatalf("vector %q stands twice, or in no section", name)
				}
				if in == section {
					own = append(own, name)
				}
				line = m[2]
			} else if name == "" || !strings.HasPrefix(line, " ") {
				v.tb.Fatalf("%q is no line of a test vector", line)
			}
			v.values[name] = strings.TrimSpace(v.values[name] + "\n" + strings.TrimSpace(line))
		}
	}
	return own
}

// Text returns a vector as it stands, its lines separated by newlines.
func (v *Vectors) Text(name string) string {
	v.tb.Helper()
	s, found := v.values[name]
	if !found {
		v.tb.Fatalf("the document has no vector %q", name)
	}
	v.read[name] = true
	return s
}

// Bytes returns a vector of hexadecimal digits.
func (v *Vectors) Bytes(name string) []byte {
	v.tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(v.Text(name), "\n", ""))
	if err != nil {
		v.tb.Fatalf("vector %q: %v", name, err)
	}
	return b
}

// Hex returns a number of hexadecimal digits.
func (v *Vectors) Hex(name string) uint64 { v.tb.Helper(); return v.number(name, 16) }

// Number returns a decimal number.
func (v *Vectors) Number(name string) uint64 { v.tb.Helper(); return v.number(name, 10) }

func (v *Vectors) number(name string, base int) uint64 {
	v.tb.Helper()
	n, err := strconv.ParseUint(v.Text(name), base, 64)
	if err != nil {
		v.tb.Fatalf("vector %q: %v", name, err)
	}
	return n
}

// AddrPort returns an address and a port.
func (v *Vectors) AddrPort(name string) netip.AddrPort {
	v.tb.Helper()
	ap, err := netip.ParseAddrPort(v.Text(name))
	if err != nil {
		v.tb.Fatalf("vector %q: %v", name, err)
	}
	return ap
}
