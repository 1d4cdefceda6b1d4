package ipvs

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/task"
	"saru/syncproto/kernelsync"
)

const (
	// injectMax is the largest datagram injected, in bytes: as many IPv4
	// records as fit in 8 KiB with what the kernel puts around them. One more
	// and the kernel takes 16 KiB for it.
	injectMax     = kernelsync.HeaderSize + injectRecords*kernelsync.RecordSize4
	injectRecords = 216
	// windowBytes is how much of the kernel's memory may be sent between two
	// looks at the backup thread's queue. Even the default receive buffer
	// (212,992 bytes) holds it beside queueHigh and the quarter of the buffer
	// that the kernel gives back late (udp_rmem_release).
	windowBytes = 64 << 10
	// queueHigh is the queue, in bytes, above which the injector waits.
	queueHigh = 64 << 10
	// Unread is how many records may have been sent that the backup thread has
	// not read: since the last look, and those that waited then.
	Unread = ((windowBytes+queueHigh)/(8192+256) + 1) * injectRecords
	// stuckAfter is how long the queue may stay high before the backup
	// thread counts as stuck.
	stuckAfter = 5 * time.Second
	// stillAfter is the same once it did, so that the end of that is soon seen.
	stillAfter = 200 * time.Millisecond
	lookEvery  = 2 * time.Millisecond
)

// truesize is what a datagram of n bytes takes of the receiver's buffer
// (net/core/skbuff.c): its bytes, headers and struct skb_shared_info, rounded
// up by kmalloc, and its struct sk_buff.
func truesize(n int) int {
	const around, skb = 384, 256
	return 1<<bits.Len(uint(n+around-1)) + skb
}

// An injector sends sync messages to the backup thread, no faster than the
// thread takes them: it looks at the thread's socket instead of guessing a
// rate, since the thread silently loses what does not fit there. What it has
// sent need not be in that socket yet: while the kernel's softirqs wait for
// ksoftirqd, lo holds up to a thousand datagrams, and the queue looks empty. So
// it looks at the queue only when all that it sent has reached the sockets.
type injector struct {
	local  netip.AddrPort // the backup thread's socket
	syncID uint8

	mu       sync.Mutex
	fd       int
	buf      []byte
	unlooked int // bytes of the kernel's memory sent since the last look
	away     int // datagrams sent that have not reached the sockets

	receipts receipts
	look     func(netip.AddrPort) (udpSocket, error)
	inode    uint64                 // of the backup thread's socket, another one whenever that starts
	drops    uint64                 // of that
	lost     atomic.Uint64          // datagrams that it dropped, or that did not reach it
	trouble  atomic.Pointer[string] // what did not go on, until something does again
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
	if err == nil {
		in.receipts, err = newWitness(in.local, fd)
	}
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
	if err := in.pace(truesize(len(in.buf))); err != nil {
		return 0, err
	}
	if err := in.write(); err != nil {
		return 0, err
	}
	if in.trouble.Load() != nil {
		// Only what arrives has been told.
		if err := in.drain(context.Background(), queueHigh); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// pace waits until the backup thread has room for n more bytes.
func (in *injector) pace(n int) error {
	if in.unlooked += n; in.unlooked < windowBytes && in.trouble.Load() == nil {
		return nil
	}
	if err := in.drain(context.Background(), queueHigh); err != nil {
		return err
	}
	in.unlooked = n
	return nil
}

// settle waits until the backup thread has done all that it was sent. It takes
// one message after the other, so it has when it has read one more, which tells
// nothing. Nothing is injected meanwhile, for at most stuckAfter.
func (in *injector) settle(ctx context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fd < 0 {
		return errClosed
	}
	var err error
	if in.buf, _, err = kernelsync.AppendMessage(in.buf[:0], in.syncID, injectMax, nil); err != nil {
		return fmt.Errorf("inject: %w", err)
	}
	if err := in.write(); err != nil {
		return err
	}
	return in.drain(ctx, 0)
}

// write sends what is in buf.
func (in *injector) write() error {
	if _, err := unix.Write(in.fd, in.buf); err != nil {
		return fmt.Errorf("inject: %w", err)
	}
	in.away++
	return nil
}

// drain waits until all that was sent is in the backup thread's socket, and at
// most limit bytes wait there.
func (in *injector) drain(ctx context.Context, limit int64) error {
	sent, patience := in.away > 0, stuckAfter
	if in.trouble.Load() != nil {
		patience = stillAfter
	}
	for start := time.Now(); ; {
		in.away = max(0, in.away-in.receipts.take())
		s, err := in.look(in.local)
		if err != nil {
			return fmt.Errorf("inject: %w", err)
		}
		in.count(s)
		if in.away == 0 && s.queue <= limit {
			if sent {
				in.trouble.Store(nil)
			}
			return nil
		}
		if time.Since(start) > patience {
			if in.trouble.Load() == nil {
				in.lost.Add(uint64(in.away)) // who sent them was told that he did
			}
			err := in.stuck(s.queue, patience)
			why := err.Error()
			in.trouble.Store(&why)
			return err
		}
		if !task.Pause(ctx, lookEvery) {
			return ctx.Err()
		}
	}
}

// count counts what the backup thread's socket has dropped by now. Where it is
// another one, since somebody stopped the thread, nobody knows what had not been
// read from the one before: that counts as a datagram.
func (in *injector) count(s udpSocket) {
	if s.inode != in.inode {
		if in.inode != 0 {
			in.lost.Add(1)
		}
		in.inode, in.drops = s.inode, 0
	}
	in.lost.Add(uint64(uint32(s.drops - in.drops))) // as the kernel counts them
	in.drops = s.drops
}

// stuck says what does not go on, and gives up what did not arrive.
func (in *injector) stuck(queue int64, after time.Duration) error {
	if in.away == 0 {
		return fmt.Errorf("inject: the backup thread leaves %d bytes unread for %v", queue, after)
	}
	lost := in.away
	in.away = 0
	return fmt.Errorf("inject: %d datagrams to %v did not arrive over lo within %v; let no firewall drop them", lost, in.local, after)
}

func (in *injector) close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fd < 0 {
		return nil
	}
	fd := in.fd
	in.fd = -1
	return errors.Join(in.receipts.close(), unix.Close(fd))
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
