package usersync

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bufSize holds the largest message that the kernel sends at once: 32 KiB of
// a dump (net/netlink/af_netlink.c, netlink_dump), 8 KiB of events.
const bufSize = 64 << 10

// A socket is a generic netlink socket with one buffer. The kernel lets only
// processes with CAP_NET_ADMIN send to it besides itself.
type socket struct {
	file *os.File
	raw  rawConn
	buf  []byte
	seq  uint32

	read func(fd uintptr) bool // made once, so that receiving does not allocate
	n    int
	err  error
}

type rawConn interface {
	Read(f func(fd uintptr) bool) error
	Control(f func(fd uintptr)) error
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up generic netlink: %w", err)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, bufSize)}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, err
	}
	s.read = func(fd uintptr) bool {
		s.n, s.err = unix.Read(int(fd), s.buf)
		return !errors.Is(s.err, unix.EAGAIN)
	}
	return s, nil
}

func (s *socket) close() error { return s.file.Close() }

// control runs fn on the descriptor.
func (s *socket) control(fn func(fd int) error) error {
	var err error
	return errors.Join(s.raw.Control(func(fd uintptr) { err = fn(int(fd)) }), err)
}

// receive waits for messages; they are valid until the next call. The error is
// unix.ENOBUFS if the kernel had some for which the queue had no room, and
// os.ErrDeadlineExceeded at the deadline.
func (s *socket) receive() ([]byte, error) {
	if err := s.raw.Read(s.read); err != nil {
		return nil, err
	}
	if s.err != nil {
		return nil, s.err
	}
	return s.buf[:s.n], nil
}

// readUntil lets reads wait until ctx ends, and then end by
// os.ErrDeadlineExceeded. stop is to be called when nothing is read any more.
func (s *socket) readUntil(ctx context.Context) (stop func() bool, err error) {
	if err := s.file.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return context.AfterFunc(ctx, func() {
		// In the past: it ends a read that waits.
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	}), nil
}

// next is receive, but unless wait it does not wait for messages: more is false
// then if there are none.
func (s *socket) next(wait bool) (b []byte, more bool, err error) {
	if wait {
		b, err = s.receive()
		return b, true, err
	}
	err = s.control(func(fd int) (err error) {
		s.n, err = unix.Read(fd, s.buf)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return nil, false, nil
	}
	if err != nil {
		return nil, true, err
	}
	return s.buf[:s.n], true, nil
}

// header is the head of one netlink message.
type header struct {
	kind, flags uint16
	seq         uint32
}

// nextMessage cuts the first message off b.
func nextMessage(b []byte) (h header, body, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, malformed("netlink message", len(b))
	}
	n := int(native.Uint32(b))
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return h, nil, nil, malformed("netlink message", n)
	}
	h = header{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:])}
	return h, b[unix.SizeofNlMsghdr:n], b[min(align(n), len(b)):], nil
}

// send sends one request.
func (s *socket) send(family uint16, flags uint16, cmd uint8, attrs []byte) error {
	s.seq++
	n := unix.SizeofNlMsghdr + genlHeader + len(attrs)
	b := make([]byte, 0, n)
	b = native.AppendUint32(b, uint32(n))
	b = native.AppendUint16(b, family)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = native.AppendUint32(b, s.seq)
	b = native.AppendUint32(b, 0)
	b = append(b, cmd, Version, 0, 0)
	b = append(b, attrs...)
	return s.control(func(fd int) error {
		return unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// timeout is for answers, which the kernel gives before send returns or, for
// a dump, as they are read.
const timeout = 10 * time.Second

// answers calls fn with the attributes of each answer to the last request. It
// reads all of them even if fn returns an error, which is the first one that
// it returns, so that the socket can be used again.
func (s *socket) answers(fn func(attrs []byte) error) error {
	var failed error
	for {
		if err := s.file.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		b, err := s.receive()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			h, body, rest, err := nextMessage(b)
			if err != nil {
				return err
			}
			b = rest
			if h.seq != s.seq {
				continue // of a request that was given up
			}
			switch h.kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if failed == nil {
					failed = status(h, body)
				}
				return failed
			}
			if failed == nil && len(body) < genlHeader {
				failed = malformed("answer", len(body))
			}
			if failed == nil {
				failed = fn(body[genlHeader:])
			}
		}
	}
}

// A KernelError is the kernel's refusal: the errno and what it says of it.
type KernelError struct {
	Errno unix.Errno
	Text  string // may be empty
}

func (e *KernelError) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s: %v", e.Text, e.Errno)
}

// Unwrap returns the errno.
func (e *KernelError) Unwrap() error { return e.Errno }

// status is the error in an NLMSG_ERROR or NLMSG_DONE, nil if there is none.
func status(h header, body []byte) error {
	if len(body) < 4 {
		if h.kind == unix.NLMSG_DONE {
			return nil
		}
		return malformed("acknowledgement", len(body))
	}
	code := int32(native.Uint32(body))
	if code == 0 {
		return nil
	}
	if code > 0 {
		return malformed("acknowledgement with a positive error", int(code))
	}
	return &KernelError{unix.Errno(-code), ackText(h, body)}
}

// ackText finds the extended acknowledgement's message, or returns "".
func ackText(h header, body []byte) string {
	const ackMsg = 1 // NLMSGERR_ATTR_MSG
	skip := 4        // of NLMSG_DONE
	if h.kind == unix.NLMSG_ERROR {
		skip += unix.SizeofNlMsghdr // the request's head, capped
	}
	if h.flags&unix.NLM_F_ACK_TLVS == 0 || len(body) < skip {
		return ""
	}
	if v := attrOf(body[skip:], ackMsg); len(v) > 0 && len(v) < 256 {
		return string(v[:len(v)-1])
	}
	return ""
}
