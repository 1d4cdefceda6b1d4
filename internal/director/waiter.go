package director

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A waiter waits until one of several descriptors can be read, through Go's own
// poller: an epoll descriptor can be waited for like any other. A thread that
// sleeps in a system call of its own keeps the runtime's monitor awake, some
// 20 µs apart; that cost more than all the protocol's work.
type waiter struct {
	fd    int // of file
	file  *os.File
	conn  syscall.RawConn
	ready func(fd uintptr) bool
}

func newWaiter(fds ...int) (*waiter, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// Only then os.File hands it to the poller.
	if err := unix.SetNonblock(ep, true); err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w := &waiter{fd: ep, file: os.NewFile(uintptr(ep), "epoll")}
	for _, fd := range fds {
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return nil, errors.Join(fmt.Errorf("epoll: %w", err), w.file.Close())
		}
	}
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	var events [1]unix.EpollEvent
	w.ready = func(fd uintptr) bool {
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	}
	return w, nil
}

// wait returns when something can be read, and after d at the latest.
func (w *waiter) wait(d time.Duration) error {
	if err := w.file.SetReadDeadline(time.Now().Add(d)); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := w.conn.Read(w.ready); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

func (w *waiter) close() error { return w.file.Close() }
