// Package config reads configuration files strictly, and says what is wrong
// with them in one line.
//
// What must hold: an unknown key, a value of the wrong type and a value out of
// range are all errors that name the file, the place, the value and the cure;
// such errors end a program with exit status 2 before it touched anything.
package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// BadInputStatus is the exit status for bad input of any kind: flags,
// configuration, a key file, a kernel that lacks what is asked for.
const BadInputStatus = 2

type badInput struct{ msg string }

func (e *badInput) Error() string { return e.msg }

// Bad returns an error for input that the user must mend. Its text is one line
// that names the thing, the value, what is wrong and the cure.
func Bad(format string, args ...any) error {
	return &badInput{fmt.Sprintf(format, args...)}
}

// ExitStatus returns the exit status of a program that ended with err: 0, 1,
// or BadInputStatus if an error of Bad is in err's chain.
func ExitStatus(err error) int {
	var bad *badInput
	switch {
	case err == nil:
		return 0
	case errors.As(err, &bad):
		return BadInputStatus
	}
	return 1
}

// Load reads the TOML file path into the struct that v points to, whose
// fields hold the defaults. Keys that the struct does not have are errors.
func Load(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return Bad("configuration: %v; name the file with --config", err)
	}
	defer f.Close()
	return explain(path, toml.NewDecoder(f).DisallowUnknownFields().Decode(v))
}

// Parse is Load for a configuration in memory; name stands for the file.
func Parse(name, text string, v any) error {
	return explain(name, toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(v))
}

func explain(path string, err error) error {
	if err == nil {
		return nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		e := &unknown.Errors[0]
		row, _ := e.Position()
		return Bad("%s:%d: unknown key %q; see the reference configuration for the keys there are", path, row, strings.Join(e.Key(), "."))
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, col := dec.Position()
		key := ""
		if k := dec.Key(); len(k) > 0 {
			key = fmt.Sprintf("key %q: ", strings.Join(k, "."))
		}
		return Bad("%s:%d:%d: %s%s", path, row, col, key, plain(strings.TrimPrefix(dec.Error(), "toml: ")))
	}
	return Bad("%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
}

// misplaced are the decoder's words for a value of the wrong type, which name
// types of Go.
var misplaced = regexp.MustCompile(`^cannot (?:decode TOML (.+?) into .* type|store an? (.+) in an?) (.+)$`)

// plain is a decoder's message in the words of the file.
func plain(msg string) string {
	m := misplaced.FindStringSubmatch(msg)
	if m == nil {
		return msg
	}
	return fmt.Sprintf("a value of the type %s is there; write %s", m[1]+m[2], wanted(m[3]))
}

func wanted(goType string) string {
	switch {
	case goType == "string":
		return "a string, in quotes"
	case goType == "bool":
		return "true or false"
	case goType == "config.Duration":
		return "a duration, such as \"300ms\""
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case strings.HasPrefix(goType, "[]"), goType == "slice":
		return "a list, in brackets"
	}
	return "a section of its own, as in the reference configuration"
}

// A Duration is a time.Duration written as in "300ms". A mere number is so many
// nanoseconds, and so out of any key's range.
type Duration time.Duration

// UnmarshalText parses what time.ParseDuration does.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"300ms\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return d.Std().String() }

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Name checks a name that other nodes print, of at most so many characters.
func Name(key, name string, most int) error {
	strange := strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' })
	if name == "" || len(name) > most || strange {
		return Bad("%s = %q: use 1 to %d printable ASCII characters without spaces", key, name, most)
	}
	return nil
}

// maxPath is less than the 108 bytes of a socket's address (unix(7)), so that a
// number may follow.
const maxPath = 100

// SocketPath checks where a socket is.
func SocketPath(key, path string) error {
	if !filepath.IsAbs(path) || len(path) > maxPath {
		return Bad("%s = %q: use an absolute path of at most %d characters", key, path, maxPath)
	}
	return nil
}

// Interface returns the network interface that key names, or the names that
// it could have been.
func Interface(key, name string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(name)
	if err == nil {
		return ifi, nil
	}
	all, lerr := net.Interfaces()
	if lerr != nil {
		return nil, fmt.Errorf("list interfaces: %w", lerr)
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return nil, Bad("%s = %q: no such interface; there are %s", key, name, strings.Join(names, ", "))
}
