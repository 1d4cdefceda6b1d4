package usersync

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// A Watcher hears of the module being loaded and unloaded. Open it before
// Dial: what happens between a Dial that failed and Wait ends Wait at once.
type Watcher struct{ sock *socket }

// OpenWatcher returns a Watcher of this network namespace. It works without
// the module.
func OpenWatcher() (*Watcher, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	defer conn.Close()
	group, err := controllersGroup(conn)
	if err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	err = s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the generic netlink controller: %w", err), s.close())
	}
	return &Watcher{s}, nil
}

// Wait returns nil when the last news is that the module was loaded, and has
// not been returned for; and ctx's error when ctx ends. It asks nothing of the
// kernel, which would load the module again that somebody has just unloaded.
func (w *Watcher) Wait(ctx context.Context) error {
	stop, err := w.sock.readUntil(ctx)
	if err != nil {
		return err
	}
	defer stop()
	there := false
	for ctx.Err() == nil {
		b, more, err := w.sock.next(!there)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			there = true // it may be among what was lost
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("listen to the generic netlink controller: %w", err)
		case !more:
			return nil
		default:
			there = present(b, there)
		}
	}
	return ctx.Err()
}

// Close ends the subscription. No Wait may be under way.
func (w *Watcher) Close() error { return w.sock.close() }

// present returns whether our family is there after the controller's messages
// b, if it was before or not.
func present(b []byte, was bool) bool {
	for len(b) > 0 {
		h, body, rest, err := nextMessage(b)
		if err != nil {
			break
		}
		b = rest
		if h.kind != ctrlID || len(body) < genlHeader {
			continue
		}
		if cmd := body[0]; (cmd == ctrlNewFamily || cmd == ctrlDelFamily) && tellsOfUs(body[genlHeader:]) {
			was = cmd == ctrlNewFamily
		}
	}
	return was
}

func tellsOfUs(attrs []byte) bool {
	return string(attrOf(attrs, ctrlAttrFamilyName)) == Family+"\x00"
}
