package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

const (
	// injectMax is the largest datagram injected, in bytes: MaxRecords IPv4
	// records. lo carries it whole, and the backup thread's buffer on lo has
	// 65,507 bytes.
	injectMax = kernelsync.HeaderSize + kernelsync.MaxRecords*kernelsync.RecordSize4
	// windowBytes is how much may be sent between two looks at the backup
	// thread's queue. Even the default receive buffer (212,992 bytes) holds
	// twice that, and the thread had half of it left at the last look.
	windowBytes = 64 << 10
	// queueHigh is the queue, in bytes, above which the injector waits.
	queueHigh = 64 << 10
	// stuckAfter is how long the queue may stay high before the backup
	// thread counts as stuck.
	stuckAfter = 5 * time.Second
	lookEvery  = 2 * time.Millisecond
	// skbOverhead is what a datagram costs the receiver's buffer beside
	// its bytes (struct sk_buff and its rounding).
	skbOverhead = 1024
)

// An injector sends sync messages to the backup thread, no faster than the
// thread takes them: it looks at the thread's socket instead of guessing a
// rate, since the thread silently loses what does not fit there.
type injector struct {
	local  netip.AddrPort // the backup thread's socket
	syncID uint8

	mu       sync.Mutex
	fd       int
	buf      []byte
	unlooked int // bytes sent since the last look

	look func(netip.AddrPort) (udpSocket, error)
}

func newInjector(port uint16, syncID uint8) (*injector, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("injection socket: %w", err)
	}
	in := &injector{local: netip.AddrPortFrom(syncGroup, port), syncID: syncID, fd: fd, look: backupSocket}
	err = errors.Join(
		unix.BindToDevice(fd, "lo"),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: syncGroup.As4(), Port: int(port)}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("injection socket on lo: %w", err)
	}
	return in, nil
}

var errClosed = errors.New("the tap is closed")

// inject sends conns in as many messages as it takes. Connections that no
// message can carry are skipped and returned as bad.
func (in *injector) inject(conns []conntable.Connection) (sent, bad int, err error) {
	for len(conns) > 0 {
		n, err := in.one(conns)
		if err != nil {
			return sent, bad, err
		}
		if n == 0 {
			n = 1
			bad++
		} else {
			sent += n
		}
		conns = conns[n:]
	}
	return sent, bad, nil
}

// one sends one message of the first of conns, and returns how many it held;
// none if the first cannot be told. The lock is held for one message only, so
// that a heartbeat need not wait for a bulk.
func (in *injector) one(conns []conntable.Connection) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fd < 0 {
		return 0, errClosed
	}
	var n int
	var err error
	in.buf, n, err = kernelsync.AppendMessage(in.buf[:0], in.syncID, injectMax, conns)
	if err != nil {
		return 0, nil
	}
	if err := in.pace(len(in.buf) + skbOverhead); err != nil {
		return 0, err
	}
	if _, err := unix.Write(in.fd, in.buf); err != nil {
		return 0, fmt.Errorf("inject: %w", err)
	}
	return n, nil
}

// pace waits until the backup thread has room for n more bytes.
func (in *injector) pace(n int) error {
	if in.unlooked += n; in.unlooked < windowBytes {
		return nil
	}
	if err := in.drain(queueHigh); err != nil {
		return err
	}
	in.unlooked = n
	return nil
}

// drain waits until at most limit bytes wait in the backup thread's socket.
func (in *injector) drain(limit int64) error {
	for start := time.Now(); ; {
		s, err := in.look(in.local)
		if err != nil {
			return fmt.Errorf("inject: %w", err)
		}
		if s.queue <= limit {
			return nil
		}
		if time.Since(start) > stuckAfter {
			return fmt.Errorf("inject: the backup thread leaves %d bytes unread for %v", s.queue, stuckAfter)
		}
		time.Sleep(lookEvery)
	}
}

func (in *injector) close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	fd := in.fd
	in.fd = -1
	return unix.Close(fd)
}

// deletion returns what makes the kernel drop c: the same entry with a second
// to live, as a closed connection so that its real server's counts fall.
func deletion(c *conntable.Connection) conntable.Connection {
	d := *c
	d.Timeout = time.Second
	if !d.Template && d.Protocol == kernelsync.ProtoTCP {
		d.State = 6 // CLOSE
		d.Flags |= conntable.FlagInactive
	}
	return d
}
