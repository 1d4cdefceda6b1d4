package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// atOnce is how many packets are read, decided and answered together.
	atOnce = 64

	// copied is how much of a packet user space sees. Whatever an Ethernet
	// frame carries is whole; of a reassembled datagram it is the headers.
	copied = 2048

	// waiting is how many packets of a queue may wait for a verdict. More are
	// dropped: at 5 us each the last has waited 10 ms.
	waiting = 2048

	// socketBuffer holds them all, as the kernel counts them.
	socketBuffer = 16 << 20

	bindSequence, listenSequence = 1, 2
)

// A judge decides packets. It is held from the first decision of a batch until
// its verdicts have taken effect.
type judge interface {
	hold(now time.Time)
	accept(q *queued) bool
	release()
}

// A reader serves one queue.
type reader struct {
	queue uint16
	judge judge
	file  *os.File
	raw   syscall.RawConn

	buffers [atOnce][copied + 256]byte
	vectors [atOnce]unix.Iovec
	headers [atOnce]mmsghdr
	got     int
	errno   unix.Errno
	receive func(fd uintptr) bool
	write   func(fd uintptr) bool
	out     []byte
	stats   *stats
}

// mmsghdr is the argument of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// newReader takes a queue. Nothing comes until run.
func newReader(queue uint16, j judge, s *stats) (_ *reader, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("queue: open a netlink socket: %w", err)
	}
	r := &reader{queue: queue, judge: j, stats: s, file: os.NewFile(uintptr(fd), fmt.Sprintf("nfqueue %d", queue))}
	defer func() {
		if err != nil {
			r.file.Close()
		}
	}()
	if r.raw, err = r.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	for i := range r.headers {
		r.vectors[i].Base = &r.buffers[i][0]
		r.vectors[i].SetLen(len(r.buffers[i]))
		r.headers[i].header.Iov = &r.vectors[i]
		r.headers[i].header.SetIovlen(1)
	}
	r.receive, r.write = r.receiveSome, r.writeOut
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
		// What does not fit is dropped and counted by the queue; to be told by a
		// failing read would only cost the packets behind it.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	// The kernel answers before the write returns.
	if _, err = r.file.Write(appendBind(nil, bindSequence, queue, waiting)); err != nil {
		return nil, bindError(queue, err)
	}
	n, err := r.file.Read(r.buffers[0][:])
	if err != nil {
		return nil, bindError(queue, err)
	}
	m, _, err := parse(r.buffers[0][:n])
	if err == nil && (!m.answer || m.sequence != bindSequence) {
		err = errMessage
	}
	if err = errors.Join(err, m.err); err != nil {
		return nil, bindError(queue, err)
	}
	return r, nil
}

// run judges what comes until ctx ends.
func (r *reader) run(ctx context.Context, listening func()) error {
	stop := context.AfterFunc(ctx, func() { r.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.file.Write(appendListen(nil, listenSequence, r.queue, copied)); err != nil {
		return bindError(r.queue, err)
	}
	listening()
	for {
		err := r.raw.Read(r.receive)
		if err == nil && r.errno != 0 {
			err = r.errno
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("queue: read number %d: %w", r.queue, err)
		}
		if err := r.answer(); err != nil {
			return err
		}
	}
}

// receiveSome reports whether something was received.
func (r *reader) receiveSome(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers[0])), atOnce, 0, 0, 0)
	if errno == unix.EAGAIN {
		return false
	}
	r.got, r.errno = int(n), errno
	if errno != 0 {
		r.got = 0
	}
	return true
}

// answer judges what was received and gives the verdicts, in one system call.
// When that returns they have taken effect: the kernel sends an accepted packet
// on within it.
func (r *reader) answer() error {
	r.judge.hold(time.Now())
	defer r.judge.release()
	r.out = r.out[:0]
	dropped, last := false, uint32(0)
	drop := func() {
		if dropped {
			r.out = appendVerdict(r.out, msgVerdictMany, r.queue, verdictDrop, last)
			dropped = false
		}
	}
	for i := range r.got {
		for b := r.buffers[i][:min(int(r.headers[i].length), len(r.buffers[i]))]; len(b) > 0; {
			m, rest, err := parse(b)
			if err != nil {
				return fmt.Errorf("%w: % .40x", err, b)
			}
			b = rest
			switch {
			case m.answer && m.sequence == listenSequence && m.err != nil:
				return bindError(r.queue, m.err)
			case m.answer && m.err != nil:
				r.stats.late.Add(1) // the packet was gone: the table was replaced
			case m.answer:
			case r.judge.accept(&m.queued):
				drop()
				r.out = appendVerdict(r.out, msgVerdict, r.queue, verdictAccept, m.id)
			default:
				dropped, last = true, m.id
			}
		}
	}
	drop()
	if len(r.out) == 0 {
		return nil
	}
	if err := r.raw.Write(r.write); err != nil {
		return fmt.Errorf("queue: write to number %d: %w", r.queue, err)
	}
	if r.errno != 0 {
		return fmt.Errorf("queue: give verdicts to number %d: %w", r.queue, r.errno)
	}
	return nil
}

// writeOut never waits: the kernel takes a message in the sender's time.
func (r *reader) writeOut(fd uintptr) bool {
	r.errno = 0
	for {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&r.out[0])), uintptr(len(r.out)), 0, 0, 0)
		if errno != unix.EINTR {
			r.errno = errno
			return true
		}
	}
}

func (r *reader) close() error { return r.file.Close() }
