package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/multicast"
	"saru/internal/task"
)

// lookEvery is how soon a vanished interface is noticed, and its return.
const lookEvery = time.Second

var (
	errVanished = errors.New("the interface was deleted")
	errAway     = errors.New("the interface is away")
)

// hear delivers datagrams until ctx ends or the interface is deleted: then the
// sockets, and the group's membership with them, are of no use even if one of
// the same name comes back.
func (u *UDP) hear(ctx context.Context, deliver func(c *net.UDPConn) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range []*net.UDPConn{u.own, u.group} {
		if c == nil {
			continue
		}
		g.Go(func() error {
			stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
			defer stop()
			if err := deliver(c); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	if u.cfg.Interface != nil {
		g.Go(func() error { return watchDevice(ctx, u.own) })
	}
	return g.Wait()
}

// watchDevice returns nil when ctx ends, errVanished when the device that c is
// bound to is no more. It asks the socket, whatever network namespace the
// caller is in.
func watchDevice(ctx context.Context, c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the interface: %w", err)
	}
	for task.Pause(ctx, lookEvery) {
		var gone bool
		err := raw.Control(func(fd uintptr) {
			_, err := unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
			gone = errors.Is(err, unix.ENODEV)
		})
		if err != nil {
			return fmt.Errorf("watch the interface: %w", err)
		}
		if gone {
			return errVanished
		}
	}
	return nil
}

// reopen waits until the interface is back with the address that peers know
// us by, and opens the sockets anew. Streams need no more: they are bound to
// the address. It reports whether ctx is still alive.
func (u *UDP) reopen(ctx context.Context) bool {
	u.cfg.Log.Warn("the interface to the peers is gone; waiting for it", "interface", u.cfg.Interface.Name, "address", u.addr.Addr())
	u.mu.Lock()
	u.closeSocketsLocked()
	u.away = errAway
	u.mu.Unlock()
	for task.Pause(ctx, lookEvery) {
		if u.openAgain() == nil {
			u.cfg.Log.Info("the interface to the peers is back", "interface", u.cfg.Interface.Name)
			return true
		}
	}
	return false
}

func (u *UDP) openAgain() error {
	ifi, err := config.Interface("sync.interface", u.cfg.Interface.Name)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cfg.Interface = ifi
	if u.away = u.openSockets(); u.away != nil {
		u.closeSocketsLocked()
	}
	return u.away
}

// Trouble says what is wrong with the interface to the peers, for people; empty
// if nothing is, or none is named.
func (u *UDP) Trouble() string {
	u.mu.Lock()
	ifi, away := u.cfg.Interface, u.away
	u.mu.Unlock()
	if ifi == nil {
		return ""
	}
	name := ifi.Name
	switch flags, err := u.flagsOf(name); {
	case errors.Is(err, net.ErrClosed): // at the end
		return ""
	case errors.Is(err, unix.ENODEV):
		return fmt.Sprintf("sync.interface %q is gone: no peer is heard; syncd waits for it", name)
	case err != nil:
		return fmt.Sprintf("sync.interface %q: %v", name, err)
	case flags&unix.IFF_UP == 0:
		return fmt.Sprintf("sync.interface %q is down: no peer is heard; bring it up ('ip link set %s up')", name, name)
	case flags&unix.IFF_RUNNING == 0:
		return fmt.Sprintf("sync.interface %q has no carrier: no peer is heard; look at the cable and the switch", name)
	case away != nil:
		return fmt.Sprintf("sync.interface %q is back, and cannot be used: %v", name, away)
	}
	return ""
}

// flagsOf asks the listener, whatever network namespace the caller is in.
func (u *UDP) flagsOf(device string) (flags uint16, err error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	raw, err := u.ln.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.SIOCGIFFLAGS, ifr) })
	return ifr.Uint16(), errors.Join(failed, err)
}

func (u *UDP) closeSocketsLocked() error {
	var errs []error
	for _, c := range []*net.UDPConn{u.own, u.group} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	u.own, u.group, u.pc = nil, nil, nil
	return errors.Join(errs...)
}

// Receive delivers datagrams, one at a time, until ctx ends.
func (u *UDP) Receive(ctx context.Context, deliver Deliverer) error {
	var one sync.Mutex
	for {
		v6, group := u.cfg.IsIPv6(), u.group
		err := u.hear(ctx, func(c *net.UDPConn) error {
			return receive(c, multicast.NewConn(c, v6), &one, c == group, deliver)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, errVanished):
			return err
		case !u.reopen(ctx):
			return nil
		}
	}
}
