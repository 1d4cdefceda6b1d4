package lan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctls remembers the values that were there before ours.
type sysctls struct {
	file  string // "" for memory only
	saved map[string]change
}

type change struct{ Old, New string }

// openSysctls returns the memory; what a crash left in file is kept, so that
// the values from before it are the ones restored.
func openSysctls(file string) (sysctls, error) {
	s := sysctls{file: file, saved: make(map[string]change)}
	if file == "" {
		return s, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s.saved)
	}
	if err == nil {
		for key := range s.saved {
			if filepath.Clean(key) != key || !strings.HasPrefix(key, "net/ipv4/conf/") {
				err = fmt.Errorf("unexpected key %q", key)
			}
		}
	}
	if err != nil {
		return sysctls{}, fmt.Errorf("lan: state file %s: %w; remove it", file, err)
	}
	return s, nil
}

func path(key string) string { return "/proc/sys/" + key }

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(path(key))
	return strings.TrimSpace(string(b)), err
}

// set writes value to a sysctl, after the old one is safe in the file. A value
// that is there already is the operator's and stays for good.
func (s *sysctls) set(key, value string) error {
	old, err := readSysctl(key)
	if err != nil {
		return fmt.Errorf("lan: sysctl: %w", err)
	}
	if old == value {
		return nil
	}
	if _, known := s.saved[key]; !known {
		s.saved[key] = change{old, value}
		if err := s.store(); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path(key), []byte(value), 0); err != nil {
		return fmt.Errorf("lan: sysctl: %w", err)
	}
	return nil
}

func (s *sysctls) store() error {
	if s.file == "" {
		return nil
	}
	b, err := json.Marshal(s.saved)
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

// restore writes the old values back, except where somebody else has changed
// ours since, or the interface is gone.
func (s *sysctls) restore() error {
	var errs []error
	for key, c := range s.saved {
		now, err := readSysctl(key)
		if err == nil && now == c.New {
			err = os.WriteFile(path(key), []byte(c.Old), 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("lan: sysctl: %w", err))
		}
	}
	s.saved = nil
	if s.file != "" {
		if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("lan: state file: %w", err))
		}
	}
	return errors.Join(errs...)
}
