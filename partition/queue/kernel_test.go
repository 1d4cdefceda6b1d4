package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/nft"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	vip       = netip.MustParseAddr("10.9.0.100")
	sharedMAC = net.HardwareAddr{0x02, 0x00, 0x5e, 0x00, 0x01, 0xc9}
)

// inNamespace runs f in a network namespace of its own, where what is sent on
// eth1 comes in on eth0.
func inNamespace(t testing.TB, f func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		done <- func() error {
			ns, err := netns.New()
			if err != nil {
				return err
			}
			defer ns.Close()
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			for _, name := range []string{"lo", "eth0", "eth1"} {
				link, err := netlink.LinkByName(name)
				if err == nil {
					err = netlink.LinkSetUp(link)
				}
				if err != nil {
					return err
				}
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			for _, a := range []string{"10.9.0.100/32", "10.9.0.2/32"} {
				addr, err := netlink.ParseAddr(a)
				if err == nil {
					err = netlink.AddrAdd(lo, addr)
				}
				if err != nil {
					return err
				}
			}
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			// Or the client's address, which is nowhere, is a martian.
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}})
			if err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-done; errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func testConfig(lease time.Duration) nft.Config {
	return nft.Config{
		Name: "saru", Interface: "eth0", MAC: sharedMAC, Lease: lease, ShareID: 7,
		Plan: partition.Plan{
			VIPs: partition.Hosts(vip), Buckets: 256, Default: partition.Division{Sense: partition.SrcPort},
		},
	}
}

// A world is a director's filter, and its one client.
type world struct {
	*Filter
	wire, socket int
	ifindex      int
	stop         func() error
}

func newWorld(cfg nft.Config, judges func(*view) judge) (_ *world, err error) {
	if err := nft.ProbeQueues(); err != nil {
		return nil, err
	}
	w := &world{}
	if w.Filter, err = Open(cfg); err != nil {
		return nil, err
	}
	for _, r := range w.readers {
		if v, is := r.judge.(*view); is && judges != nil {
			r.judge = judges(v)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.stop = func() error {
		cancel()
		return errors.Join(<-done, w.Close(), unix.Close(w.wire), unix.Close(w.socket))
	}
	<-w.Ready()
	ifi, err := net.InterfaceByName("eth1")
	if err != nil {
		return nil, err
	}
	w.ifindex = ifi.Index
	if w.wire, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if w.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, err
	}
	return w, errors.Join(
		unix.SetsockoptInt(w.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.Bind(w.socket, &unix.SockaddrInet4{Port: 4242, Addr: vip.As4()}))
}

// inWorld runs fn with a filter in a namespace of its own.
func inWorld(t *testing.T, cfg nft.Config, judges func(*view) judge, fn func(w *world) error) {
	t.Helper()
	inNamespace(t, func() error {
		w, err := newWorld(cfg, judges)
		if err != nil {
			return err
		}
		return errors.Join(fn(w), w.stop())
	})
}

// serve makes all buckets this director's, for a lease from now.
func (w *world) serve() error {
	all := partition.FullSet(256)
	return errors.Join(w.Apply(nft.Desired{Open: all, Rest: all}), w.Arm(1), w.Confirm(1))
}

// send sends a datagram to the VIP.
func (w *world) send() error {
	return unix.Sendto(w.wire, datagram(40001), 0, &unix.SockaddrLinklayer{Ifindex: w.ifindex})
}

// got returns how many datagrams have come.
func (w *world) got() (n int) {
	var buf [2048]byte
	for {
		if _, err := unix.Read(w.socket, buf[:]); err != nil {
			return n
		}
		n++
	}
}

// datagram returns a frame with one of 4 bytes to the VIP.
func datagram(from uint16) []byte {
	b := append(append([]byte{}, sharedMAC...), 2, 0, 0, 0, 0, 9, 8, 0)
	h := []byte{0x45, 0, 0, 32, 0, 1, 0, 0, 64, partition.UDP, 0, 0, 192, 0, 2, 7, 10, 9, 0, 100}
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	b = append(b, h...)
	b = binary.BigEndian.AppendUint16(b, from)
	return append(b, 4242>>8, 4242&255, 0, 12, 0, 0, 1, 2, 3, 4)
}

func (w *world) until(what string, f func(s nft.Stats) bool) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := w.Stats()
		if err != nil || f(s) {
			return err
		}
		if time.Now().After(end) {
			return errors.New("never " + what)
		}
	}
}

// A process that is stopped while packets wait for its verdict accepts nothing
// when it goes on after its lease, whatever it says of them.
func TestLateVerdicts(t *testing.T) {
	inWorld(t, testConfig(600*time.Millisecond), nil, func(w *world) error {
		err := errors.Join(w.serve(), w.send(),
			w.until("accepted in time", func(s nft.Stats) bool { return s.Accepted == 1 }))
		if err != nil {
			return err
		}
		w.share.mu.Lock() // as if stopped: no reader decides
		err = errors.Join(w.Arm(2), w.Confirm(2))
		for range 100 {
			err = errors.Join(err, w.send())
		}
		if err := errors.Join(err, untilLapsed(w)); err != nil {
			w.share.mu.Unlock()
			return err
		}
		w.share.mu.Unlock()
		if err := w.until("dropped as late", func(s nft.Stats) bool { return s.Lapsed == 100 }); err != nil {
			return err
		}
		if s, err := w.Stats(); err != nil || s.Accepted != 1 || s.Waiting != 0 || w.got() != 1 {
			t.Errorf("%+v, %v", s, err)
		}
		return nil
	})
}

// untilLapsed waits for the lease's end. The share may be locked.
func untilLapsed(w *world) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err := w.table.Stats(); err != nil || s.LeaseLeft == 0 {
			return err
		}
	}
	return errors.New("the lease never lapsed")
}

// A slow judge takes its time between a decision and the verdict.
type slow struct {
	view
	decided chan struct{}
}

func (s *slow) accept(q *queued) bool {
	ok := s.view.accept(q)
	s.decided <- struct{}{}
	time.Sleep(100 * time.Millisecond)
	return ok
}

// When Apply returns, what was decided by the share before it has come, and
// nothing more of that comes.
func TestApplyIsFinal(t *testing.T) {
	inNamespace(t, func() error {
		decided := make(chan struct{})
		w, err := newWorld(testConfig(time.Minute), func(v *view) judge { return &slow{*v, decided} })
		if err != nil {
			return err
		}
		defer func() {
			if err := w.stop(); err != nil {
				t.Error(err)
			}
		}()
		all := partition.FullSet(256)
		if err := errors.Join(w.Arm(1), w.Confirm(1)); err != nil {
			return err
		}
		for range 5 {
			if err := errors.Join(w.Apply(nft.Desired{Open: all, Rest: all}), w.send()); err != nil {
				return err
			}
			<-decided
			if err := w.Apply(nft.Desired{}); err != nil {
				return err
			}
			if n := w.got(); n != 1 {
				t.Errorf("%d datagrams had come when Apply returned, want 1", n)
			}
			if err := w.until("judged", func(s nft.Stats) bool { return s.Waiting == 0 }); err != nil {
				return err
			}
			if n := w.got(); n != 0 {
				t.Errorf("%d datagrams accepted after Apply", n)
			}
		}
		return nil
	})
}

// What is more than a queue holds is dropped and counted, and nothing of it is
// accepted.
func TestOverrun(t *testing.T) {
	inWorld(t, testConfig(time.Minute), nil, func(w *world) error {
		if err := w.serve(); err != nil {
			return err
		}
		const sent = 2 * waiting * 3
		var err error
		w.share.mu.Lock()
		for range sent {
			err = errors.Join(err, w.send())
		}
		w.share.mu.Unlock()
		if err := errors.Join(err, w.until("judged", func(s nft.Stats) bool { return s.Waiting == 0 && s.Accepted+s.Overruns == sent })); err != nil {
			return err
		}
		s, err := w.Stats()
		if s.Overruns == 0 || s.Accepted < waiting/2 {
			t.Errorf("%+v", s)
		}
		return err
	})
}

// Nobody listens, nothing is accepted; a queue that is taken is named.
func TestClosed(t *testing.T) {
	inNamespace(t, func() error {
		w, err := newWorld(testConfig(time.Minute), nil)
		if err != nil {
			return err
		}
		if err := w.serve(); err != nil {
			return err
		}
		if _, err := newReader(w.queues.First, &view{share: w.share}, &w.share.stats); !errors.Is(err, unix.EPERM) {
			t.Errorf("a queue taken twice: %v", err)
		}
		for _, r := range w.readers { // as the kernel does when the process is killed
			if err := r.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
				return err
			}
			if err := r.close(); err != nil {
				return err
			}
		}
		w.readers = nil
		for range 10 {
			if err := w.send(); err != nil {
				return err
			}
		}
		if s, err := w.Stats(); err != nil || s.Accepted != 0 || s.LeaseLeft == 0 || w.got() != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		w.stop() // its readers have failed
		return nil
	})
}
