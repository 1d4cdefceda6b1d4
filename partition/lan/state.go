package lan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A state is what Close takes back. It is in a file before it is in the
// kernel, so that a start after a crash can take it back too.
type state struct {
	file string // "" for memory only

	Sysctls map[string]change // below /proc/sys
	Local   []netip.Prefix    // on lo, ours
}

type change struct{ Old, New string }

// openState returns what a crash left in file: the values from before it are
// the ones to restore.
func openState(file string) (state, error) {
	s := state{file: file, Sysctls: make(map[string]change)}
	if file == "" {
		return s, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(&s)
	}
	for key := range s.Sysctls {
		if err == nil && (filepath.Clean(key) != key || !strings.HasPrefix(key, "net/ipv4/conf/")) {
			err = fmt.Errorf("unexpected key %q", key)
		}
	}
	if err != nil {
		return state{}, fmt.Errorf("lan: state file %s: %w; remove it", file, err)
	}
	if s.Sysctls == nil {
		s.Sysctls = make(map[string]change)
	}
	return s, nil
}

// own notes that an address is about to be ours.
func (s *state) own(vip netip.Prefix) error {
	if slices.Contains(s.Local, vip) {
		return nil
	}
	s.Local = append(s.Local, vip)
	return s.store()
}

func (s *state) disown(vip netip.Prefix) {
	s.Local = slices.DeleteFunc(s.Local, func(p netip.Prefix) bool { return p == vip })
}

func (s *state) store() error {
	if s.file == "" {
		return nil
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(s.file), 0o755)
	}
	if err == nil {
		err = os.WriteFile(s.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+".new", s.file)
	}
	if err != nil {
		return fmt.Errorf("lan: state file: %w", err)
	}
	return nil
}

func (s *state) remove() error {
	if s.file == "" {
		return nil
	}
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lan: state file: %w", err)
	}
	return nil
}
