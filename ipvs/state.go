package ipvs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// sysctlDir is where IPVS's sysctls of this network namespace are.
const sysctlDir = "/proc/sys/net/ipv4/vs"

// A setting is one sysctl and its value before we changed it.
type setting struct {
	Name string `json:"name"`
	Was  string `json:"was"`
}

// A saved is what a Tap must put back, kept in a file so that the next one
// can after a crash.
type saved struct {
	// Where it is valid: this boot, this network namespace.
	Boot    string `json:"boot"`
	Netns   string `json:"netns"`
	Sysctls []setting
}

func here() (saved, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return saved{}, fmt.Errorf("boot id: %w", err)
	}
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return saved{}, fmt.Errorf("network namespace: %w", err)
	}
	return saved{Boot: strings.TrimSpace(string(boot)), Netns: ns}, nil
}

// loadSaved reads the file that a Tap before us left. It returns false if
// there is none, or one of another boot or network namespace.
func loadSaved(path string, now saved) (saved, bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return now, false, nil
	}
	if err != nil {
		return now, false, fmt.Errorf("saved kernel settings: %w", err)
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return now, false, fmt.Errorf("saved kernel settings %s: %w", path, err)
	}
	if s.Boot != now.Boot || s.Netns != now.Netns {
		return now, false, nil
	}
	return s, true, nil
}

func (s saved) store(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save kernel settings: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save kernel settings: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save kernel settings: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save kernel settings: %w", err)
	}
	return nil
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlDir, name))
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(name, value string) error {
	return os.WriteFile(filepath.Join(sysctlDir, name), []byte(value+"\n"), 0o644)
}

// apply sets a sysctl to what Was says, unless it holds.
func (s setting) apply() error {
	now, err := readSysctl(s.Name)
	if err != nil || s.holds(now) {
		return err
	}
	return writeSysctl(s.Name, s.Was)
}

// holds says whether a sysctl that is now so is what Was says; one that is a
// lower bound if it is not below.
func (s setting) holds(now string) bool {
	if s.Name == sysctlQueue {
		return !below(now, s.Was)
	}
	return slices.Equal(strings.Fields(now), strings.Fields(s.Was))
}

// below compares numbers; what is none is below.
func below(now, bound string) bool {
	n, nerr := strconv.ParseUint(now, 10, 64)
	b, berr := strconv.ParseUint(bound, 10, 64)
	return nerr != nil || berr != nil || n < b
}

// read fills in what the sysctls named in want are now, in order. Those that
// the kernel does not have are left out, and those that are there stay: a Tap
// of an earlier version left the others alone.
func (s *saved) read(want []setting) error {
	for _, w := range want {
		if slices.ContainsFunc(s.Sysctls, func(had setting) bool { return had.Name == w.Name }) {
			continue
		}
		was, err := readSysctl(w.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read sysctl: %w", err)
		}
		s.Sysctls = append(s.Sysctls, setting{w.Name, was})
	}
	return nil
}

// restore puts everything back, the last changed first.
func (s saved) restore() error {
	var errs []error
	for i := len(s.Sysctls) - 1; i >= 0; i-- {
		if err := writeSysctl(s.Sysctls[i].Name, s.Sysctls[i].Was); err != nil {
			errs = append(errs, fmt.Errorf("restore sysctl: %w", err))
		}
	}
	return errors.Join(errs...)
}
