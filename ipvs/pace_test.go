package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

// A fakeLoopback stands for lo and the backup thread: datagrams lie in the
// backlog until a few looks have passed, then all come into the socket, of
// which the thread reads some between two looks.
type fakeLoopback struct {
	fd       int // where the injector's datagrams come out
	late     int // looks that the backlog waits for
	perLook  int64
	looks    int
	backlog  []int64
	queue    int64
	most     int64 // ever in the socket
	last     []byte
	receipts int
}

func (l *fakeLoopback) look(netip.AddrPort) (udpSocket, error) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(l.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		l.backlog = append(l.backlog, int64(truesize(n)))
		l.last = append(l.last[:0], buf[:n]...)
	}
	l.queue = max(l.queue-l.perLook, 0)
	if l.looks++; l.looks > l.late {
		l.looks = 0
		for _, n := range l.backlog {
			l.queue += n
		}
		l.receipts += len(l.backlog)
		l.backlog = nil
	}
	l.most = max(l.most, l.queue)
	return udpSocket{queue: l.queue}, nil
}

func (l *fakeLoopback) take() int {
	n := l.receipts
	l.receipts = 0
	return n
}

func (l *fakeLoopback) close() error { return nil }

func injectorTo(t *testing.T, l *fakeLoopback) *injector {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	l.fd = fds[1]
	in := &injector{syncID: 1, fd: fds[0], receipts: l, look: l.look}
	t.Cleanup(func() { in.close() })
	return in
}

func beatEntries(n int) []conntable.Connection {
	conns := make([]conntable.Connection, n)
	for i := range conns {
		conns[i] = beatEntry(i)
	}
	return conns
}

// TestPace: no more waits in the backup thread's socket than the default
// receive buffer holds, whether what is sent reaches the socket at once or the
// kernel lets it lie on the way, with a queue that looks empty.
func TestPace(t *testing.T) {
	for name, late := range map[string]int{"at once": 0, "soon": 1, "late": 30} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &fakeLoopback{late: late, perLook: 9000}
				in := injectorTo(t, l)
				conns := beatEntries(20000)
				sent, bad, err := in.inject(conns)
				if err != nil || sent != len(conns) || bad != 0 {
					t.Fatalf("%d sent, %d bad, %v", sent, bad, err)
				}
				const rcvbuf = 212_992
				if limit := int64(rcvbuf - rcvbuf/4); l.most > limit || l.most < windowBytes/2 {
					t.Errorf("up to %d bytes waited; at most %d should", l.most, limit)
				}
				l.late = 0
				if err := in.settle(t.Context()); err != nil || l.queue != 0 || in.away != 0 {
					t.Errorf("%v; %d bytes and %d datagrams are left", err, l.queue, in.away)
				}
			})
		})
	}
}

// TestStuck: the injector gives up, and says why, on a thread that does not
// read, and on datagrams that never come; and goes on when they do.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLoopback{}
		in := injectorTo(t, l)
		if _, _, err := in.inject(beatEntries(20000)); err == nil || !strings.Contains(err.Error(), "unread") {
			t.Errorf("a stuck thread: %v", err)
		}
		l.perLook = 1 << 20
		l.late = 1 << 30
		if _, _, err := in.inject(beatEntries(20000)); err == nil || !strings.Contains(err.Error(), "did not arrive") {
			t.Errorf("a firewall: %v", err)
		}
		l.late = 0
		if sent, _, err := in.inject(beatEntries(20000)); err != nil || sent != 20000 {
			t.Errorf("afterwards: %d sent, %v", sent, err)
		}
		if err := in.close(); err != nil {
			t.Error(err)
		}
		if _, _, err := in.inject(beatEntries(1)); !errors.Is(err, errClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

// TestTrouble: what does not go on is told for as long as it does not, and no
// longer, though looks in between find an empty queue.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLoopback{perLook: 1 << 20, late: 1 << 30}
		in := injectorTo(t, l)
		beat := func() { in.inject(beatEntries(1)) }
		for in.trouble.Load() == nil {
			beat()
		}
		for range 100 {
			beat()
			if why := in.trouble.Load(); why == nil || !strings.Contains(*why, "did not arrive") {
				t.Fatal("told no more")
			}
		}
		l.late = 0
		began := time.Now()
		for range 2 {
			beat()
		}
		if why := in.trouble.Load(); why != nil || time.Since(began) > 2*stillAfter {
			t.Errorf("after %v still: %v", time.Since(began), *why)
		}
	})
}

// TestFirewallLosesNothingUnseen: what was told before it was noticed that
// nothing arrives counts as lost, and afterwards nothing counts as told that did
// not arrive.
func TestFirewallLosesNothingUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLoopback{perLook: 1 << 20, late: 1 << 30}
		in := injectorTo(t, l)
		told := uint64(0)
		for range 100 {
			if n, _, err := in.inject(beatEntries(injectRecords)); err == nil && n == injectRecords {
				told++
			}
		}
		if lost := in.lost.Load(); told == 0 || told != lost {
			t.Errorf("%d datagrams were told, and %d count as lost", told, lost)
		}
		l.late = 0
		if n, _, err := in.inject(beatEntries(1)); err != nil || n != 1 || in.lost.Load() != told || in.trouble.Load() != nil {
			t.Errorf("afterwards %d told, %v; %d lost, trouble %v", n, err, in.lost.Load(), in.trouble.Load())
		}
	})
}

// TestLossesOfSockets: what one socket dropped counts once, and that somebody
// opened another, of which the datagrams that were in the first are lost.
func TestLossesOfSockets(t *testing.T) {
	in := &injector{}
	for i, x := range []struct {
		inode, drops, lost uint64
	}{{7, 0, 0}, {7, 5, 5}, {7, 5, 5}, {9, 0, 6}, {9, 5, 11}, {11, 5, 17}, {11, 1<<32 - 1, 1<<32 + 11}, {11, 3, 1<<32 + 15}} {
		if in.count(udpSocket{inode: x.inode, drops: x.drops}); in.lost.Load() != x.lost {
			t.Errorf("look %d: %d lost, want %d", i, in.lost.Load(), x.lost)
		}
	}
}

// TestSettle: it ends when one message more than was given has been read, which
// is empty, and otherwise with its caller.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLoopback{perLook: 100}
		in := injectorTo(t, l)
		if _, _, err := in.inject(beatEntries(100)); err != nil {
			t.Fatal(err)
		}
		if err := in.settle(t.Context()); err != nil || l.queue != 0 || in.away != 0 {
			t.Errorf("%v; %d bytes and %d datagrams are left", err, l.queue, in.away)
		}
		d := kernelsync.Decoder{SyncID: in.syncID}
		if err := d.Decode(l.last, func(*conntable.Connection) { t.Error("the last message tells of a connection") }); err != nil || len(l.last) != kernelsync.HeaderSize {
			t.Errorf("the last message is %x, %v", l.last, err)
		}
		l.perLook = 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if began, err := time.Now(), in.settle(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Second+lookEvery {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestTruesize(t *testing.T) {
	// As the queue of an empty socket shows them for one datagram, Linux 6.1.
	for n, want := range map[int]int{44: 768, injectMax: 8<<10 + 256, injectMax + 36: 16<<10 + 256, 9188: 16<<10 + 256} {
		if got := truesize(n); got != want {
			t.Errorf("%d bytes take %d, want %d", n, got, want)
		}
	}
}
