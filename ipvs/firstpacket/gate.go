package firstpacket

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// queue is the number of ours in nfnetlink_queue; saru's are below 22272.
	queue = 23081
	// Waiting is how many packets may be held; what exceeds it passes.
	Waiting = 4096
	// copied is how much of each packet is looked at: the headers.
	copied = 128

	socketBuffer = 8 << 20
)

// A Packet is one that is held.
type Packet struct {
	ID     uint32 // for Accept
	Client netip.AddrPort
	Target netip.AddrPort // where it goes
}

// A Gate holds packets. It is a task.
type Gate struct {
	arrived func(Packet)
	file    *os.File
	raw     syscall.RawConn
	targets map[netip.AddrPort]struct{} // of the one goroutine that sets them
}

// Open makes the table and the queue. From Run on arrived is called with each
// packet, on one goroutine; each must be accepted in the end.
func Open(arrived func(Packet)) (*Gate, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("defer: open a netlink socket: %w", err)
	}
	g := &Gate{arrived: arrived, file: os.NewFile(uintptr(fd), "nfqueue"), targets: map[netip.AddrPort]struct{}{}}
	if g.raw, err = g.file.SyscallConn(); err == nil {
		err = g.open(fd)
	}
	if err != nil {
		return nil, errors.Join(err, g.file.Close())
	}
	return g, nil
}

func (g *Gate) open(fd int) error {
	err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		return fmt.Errorf("defer: %w", err)
	}
	// The kernel answers before the write returns.
	if _, err := g.file.Write(bindMessage(queue, Waiting, copied)); err != nil {
		return fmt.Errorf("defer: queue %d: %w", queue, err)
	}
	b := make([]byte, 4096)
	n, err := g.file.Read(b)
	if err != nil {
		return fmt.Errorf("defer: queue %d: %w", queue, err)
	}
	_, _, answer, errno, _, err := next(b[:n])
	switch {
	case err != nil:
		return err
	case answer && errno != 0:
		return fmt.Errorf("defer: queue %d: %w (does the kernel have nfnetlink_queue, and is the number free?)", queue, errno)
	}
	return install(queue)
}

// Run hands on packets until ctx ends.
func (g *Gate) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = g.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 64<<10)
	for {
		n, err := g.file.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("defer: read the queue: %w", err)
		}
		for rest := b[:n]; len(rest) > 0; {
			p, ok, answer, _, more, err := next(rest)
			if err != nil {
				return err
			}
			rest = more
			switch {
			case answer: // a packet that is gone: nothing to be done
			case ok:
				g.arrived(p)
			default:
				_ = g.Accept(p.ID)
			}
		}
	}
}

// Accept lets a packet go. It is safe for concurrent use.
func (g *Gate) Accept(id uint32) error {
	if _, err := g.file.Write(verdictMessage(queue, id)); err != nil {
		return fmt.Errorf("defer: verdict: %w", err)
	}
	return nil
}

// SetTargets says which packets are held: those to these addresses and ports.
// One goroutine calls it.
func (g *Gate) SetTargets(targets map[netip.AddrPort]struct{}) error {
	var add, gone []netip.AddrPort
	for t := range targets {
		if _, had := g.targets[t]; !had {
			add = append(add, t)
		}
	}
	for t := range g.targets {
		if _, has := targets[t]; !has {
			gone = append(gone, t)
		}
	}
	if len(add)+len(gone) == 0 {
		return nil
	}
	if err := change(add, gone); err != nil {
		return err
	}
	g.targets = targets
	return nil
}

// Restore makes the table again if somebody took it away or changed it, and
// reports whether it did: until then no packet was held. One goroutine calls it,
// the one that calls SetTargets.
func (g *Gate) Restore() (bool, error) {
	n, err := holds()
	if err != nil || n == len(g.targets) {
		return false, err
	}
	if err := install(queue); err != nil {
		return false, err
	}
	targets := g.targets
	g.targets = map[netip.AddrPort]struct{}{}
	return true, g.SetTargets(targets)
}

// Clean removes the table that a gate left that was not closed.
func Clean() error { return remove() }

// Close removes the table and gives the queue back: no packet is held any
// more. Run must have returned.
func (g *Gate) Close() error { return errors.Join(remove(), g.file.Close()) }
