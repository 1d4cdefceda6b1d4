package director

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/seal"
	"saru/membership"
)

// What 'saru check' finds out about the LAN before the start: whether frames to
// the shared MAC come to this port at all. Directors that serve send such frames
// with each heartbeat, and another 'saru check' does while it runs.

const (
	// checkType is of the frames of a check: IEEE Std 802, local experimental 2.
	// No daemon takes them for heartbeats.
	checkType    = 0x88b6
	checkPurpose = "check"
	checkFor     = 1500 * time.Millisecond
	checkEvery   = 100 * time.Millisecond
)

// A heard is who was heard on the LAN.
type heard struct {
	serving  map[string]bool // directors
	checking map[string]bool // by another check
	sealed   int             // frames that another key, or none, seals
}

// listenLAN sends a check's frames and listens.
func listenLAN(s *Settings) (h heard, err error) {
	h = heard{serving: map[string]bool{}, checking: map[string]bool{}}
	ifi, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return h, err
	}
	to := s.MAC
	if s.Forward {
		to = broadcast
	}
	beats, err := openFrames(ifi, to, s.Keys)
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, beats.close()) }()
	checks, err := openFramesOf(checkType, ifi, to, seal.NewSealer(s.Keys, checkPurpose))
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, checks.close()) }()
	opens := map[*path]*seal.Opener{beats: seal.NewOpener(s.Keys, purpose), checks: seal.NewOpener(s.Keys, checkPurpose)}
	buf := make([]byte, maxDgram)
	var decoder membership.Decoder
	for end := time.Now().Add(checkFor); time.Now().Before(end); {
		checks.send([]byte(s.Node), nil)
		fds := []unix.PollFd{{Fd: int32(beats.fd), Events: unix.POLLIN}, {Fd: int32(checks.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(checkEvery.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return h, err
		}
		for p, opener := range opens {
			for range drainLimit {
				b, _ := p.receive(buf)
				if b == nil {
					break
				}
				plain, _, _, err := opener.Open(nil, b)
				if err != nil {
					h.sealed++
				} else if p == checks {
					h.checking[fmt.Sprintf("%.*q", membership.MaxName, plain)] = true
				} else if m, err := decoder.Decode(plain); err == nil {
					if hb, is := m.(*membership.Heartbeat); is && hb.Name != s.Node {
						h.serving[hb.Name] = true
					}
				}
			}
		}
	}
	return h, nil
}

// printFlooding says whether frames to the shared MAC come here. served says
// that somebody answers for the addresses already.
func printFlooding(w io.Writer, s *Settings, served bool) {
	h, err := listenLAN(s)
	if err != nil {
		fmt.Fprintf(w, "flooding       not tried: %v\n", err)
		return
	}
	fmt.Fprintf(w, "flooding       %s\n", h.text(s, served))
}

func (h *heard) text(s *Settings, served bool) string {
	what := fmt.Sprintf("frames to %v, which no switch knows,", s.MAC)
	if s.Forward {
		what = "broadcast frames"
	}
	names := slices.Sorted(maps.Keys(h.serving))
	for _, n := range slices.Sorted(maps.Keys(h.checking)) {
		names = append(names, "a check on "+n)
	}
	switch {
	case len(names) > 0:
		return fmt.Sprintf("yes: %s come to %s, from %s", what, s.Interface, strings.Join(names, ", "))
	case h.sealed > 0:
		return fmt.Sprintf("yes: %s come to %s, but sealed with another key, or for another cluster; compare cluster.key_file", what, s.Interface)
	case served && !s.Forward:
		return fmt.Sprintf("NO: somebody serves with the shared MAC, but none of the %s come to %s: does the switch flood, or has it learned that address somewhere? Use share.mode = %q where it does not", what, s.Interface, modeForward)
	}
	return fmt.Sprintf("not known: nobody sends %s now; run 'saru check' on two directors at once", what)
}
