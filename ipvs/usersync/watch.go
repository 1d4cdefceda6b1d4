package usersync

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// A Watcher hears of the module being loaded. Open it before Dial: what is
// loaded between a Dial that failed and Wait ends Wait at once.
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

// Wait returns nil when the module was loaded since the Watcher was opened or
// Wait returned last, and ctx's error when ctx ends. It may return nil without
// that, so Dial decides.
func (w *Watcher) Wait(ctx context.Context) error {
	if err := w.sock.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.sock.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		b, err := w.sock.receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return nil // it may be among what was lost
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("listen to the generic netlink controller: %w", err)
		case appeared(b):
			return nil
		}
	}
	return ctx.Err()
}

// Close ends the subscription. No Wait may be under way.
func (w *Watcher) Close() error { return w.sock.close() }

// appeared reports whether one of the controller's messages tells that our
// family is there.
func appeared(b []byte) bool {
	for len(b) > 0 {
		h, body, rest, err := nextMessage(b)
		if err != nil {
			return false
		}
		b = rest
		if h.kind != ctrlID || len(body) < genlHeader || body[0] != ctrlNewFamily {
			continue
		}
		for attrs := body[genlHeader:]; len(attrs) > 0; {
			kind, v, more, err := nextAttr(attrs)
			if err != nil {
				break
			}
			attrs = more
			if kind == ctrlAttrFamilyName && string(v) == Family+"\x00" {
				return true
			}
		}
	}
	return false
}
