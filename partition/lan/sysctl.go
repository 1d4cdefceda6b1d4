package lan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// A setting is a sysctl and the value that it must have.
type setting struct{ key, value string }

// settings are those of an interface with virtual IPv4 addresses: the kernel
// must neither answer ARP for them nor name them in its own requests
// (Documentation/networking/ip-sysctl.rst; the larger of all and the
// interface's counts). With noRedirects it must not tell who sends by way of it
// that there is a shorter way, either.
func settings(device string, noRedirects bool) (all []setting) {
	for _, where := range []string{"all", device} {
		all = append(all, setting{conf(where, "arp_ignore"), "1"}, setting{conf(where, "arp_announce"), "2"})
		if noRedirects {
			all = append(all, setting{conf(where, "send_redirects"), "0"})
		}
	}
	return all
}

func conf(where, name string) string { return "net/ipv4/conf/" + where + "/" + name }

// The values of rp_filter (RFC 3704).
const (
	strictReverse = 1 // drops what comes by another interface than answers would leave by
	looseReverse  = 2 // drops what no answer could reach
)

// loosen makes a strict reverse path filter of an interface loose: a director's
// way back to the clients need not be the way that they came. It returns what
// it has changed, or "". An interface that filters by nothing stays so.
func (s *state) loosen(device string) (changed string, err error) {
	in, all := conf(device, "rp_filter"), conf("all", "rp_filter")
	effective := 0
	for _, key := range []string{in, all} {
		text, err := readSysctl(key)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil // the interface is gone for now
		}
		n, nerr := strconv.Atoi(text)
		if err = errors.Join(err, nerr); err != nil {
			return "", fmt.Errorf("lan: sysctl: %w", err)
		}
		effective = max(effective, n)
	}
	if effective != strictReverse {
		return "", nil
	}
	if err := s.set(in, strconv.Itoa(looseReverse)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s was strict, must be loose (%d)", strings.ReplaceAll(in, "/", "."), looseReverse), nil
}

func path(key string) string { return "/proc/sys/" + key }

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(path(key))
	return strings.TrimSpace(string(b)), err
}

// set writes value to a sysctl, after the old one is safe in the file. A value
// that is there already is the operator's and stays for good.
func (s *state) set(key, value string) error {
	old, err := readSysctl(key)
	if err != nil {
		return fmt.Errorf("lan: sysctl: %w", err)
	}
	if old == value {
		return nil
	}
	if _, known := s.Sysctls[key]; !known {
		s.Sysctls[key] = change{old, value}
		if err := s.store(); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path(key), []byte(value), 0); err != nil {
		return fmt.Errorf("lan: sysctl: %w", err)
	}
	return nil
}

// restoreSysctls writes the old values back, except where somebody else has
// changed ours since, or the interface is gone.
func (s *state) restoreSysctls() error {
	var errs []error
	for key, c := range s.Sysctls {
		now, err := readSysctl(key)
		if err == nil && now == c.New {
			err = os.WriteFile(path(key), []byte(c.Old), 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("lan: sysctl: %w", err))
		}
	}
	s.Sysctls = nil
	return errors.Join(errs...)
}

// namespace names the calling thread's network namespace, which is whose
// sysctls it sees.
func namespace() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// keepSettings writes the settings again that somebody has changed, and
// returns which. A process whose threads are in several namespaces must not
// write them where Open did not.
func (l *LAN) keepSettings() (changed []string, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if here, err := namespace(); err != nil || here != l.home {
		return nil, err
	}
	for _, s := range l.settings() {
		now, err := readSysctl(s.key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now == s.value {
			continue // or the interface is gone for now
		}
		if err == nil {
			err = l.state.set(s.key, s.value)
		}
		if err != nil {
			return changed, err
		}
		changed = append(changed, fmt.Sprintf("%s was %s, must be %s", strings.ReplaceAll(s.key, "/", "."), now, s.value))
	}
	if l.has4() {
		loosened, err := l.state.loosen(l.cfg.Interface)
		if err != nil {
			return changed, err
		}
		if loosened != "" {
			changed = append(changed, loosened)
		}
	}
	return changed, nil
}
