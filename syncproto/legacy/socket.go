package legacy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/multicast"
	"saru/internal/task"
)

const (
	receiveBuffer = 8 << 20 // bytes asked of the kernel, which doubles it
	// What IPv4 or IPv6 and UDP add to a datagram, in bytes.
	ipUDPHeaders   = 20 + 8
	ipv6UDPHeaders = 40 + 8
)

// sockets are a Link's, on the interface as it is now.
type sockets struct {
	ifi   *net.Interface
	in    []*net.UDPConn // one for each port
	outc  *net.UDPConn
	out   multicast.Conn // of outc
	group *net.UDPAddr
	room  int // for a message that is not fragmented, in bytes
}

// openSockets hears group at as many ports from its own on, and sends to that.
func openSockets(name string, group netip.AddrPort, ports int) (*sockets, error) {
	ifi, err := config.Interface("legacy.interface", name)
	if err != nil {
		return nil, err
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, config.Bad("legacy.interface = %q: is down; bring it up first ('ip link set %s up')", name, name)
	}
	// No zone is needed: the sockets are bound to the interface.
	s := &sockets{ifi: ifi, group: net.UDPAddrFromAddrPort(group), room: max(576, ifi.MTU) - ipUDPHeaders}
	if group.Addr().Is6() {
		s.room = max(1280, ifi.MTU) - ipv6UDPHeaders
	}
	if err := s.open(group, ports); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *sockets) open(group netip.AddrPort, ports int) (err error) {
	v6, any := group.Addr().Is6(), netip.IPv4Unspecified()
	if v6 {
		any = netip.IPv6Unspecified()
	}
	if s.outc, err = s.listen(netip.AddrPortFrom(any, 0)); err != nil {
		return err
	}
	s.out = multicast.NewConn(s.outc, v6)
	failed := multicast.OnLink(s.out, s.ifi)
	for i := range uint16(ports) {
		c, err := s.listen(netip.AddrPortFrom(group.Addr(), group.Port()+i))
		if err != nil {
			return err
		}
		s.in = append(s.in, c)
		failed = errors.Join(failed, multicast.NewConn(c, v6).JoinGroup(s.ifi, s.group))
	}
	if failed != nil {
		return config.Bad("legacy.interface = %q: cannot do multicast to %v: %v; use the interface of the directors' sync daemons", s.ifi.Name, group, failed)
	}
	return nil
}

// listen binds to exactly at on the interface. The kernel's backup thread of
// the tap may have the same address and port on another interface.
func (s *sockets) listen(at netip.AddrPort) (*net.UDPConn, error) {
	c, err := multicast.Listen(at, multicast.Config{Device: s.ifi.Name, Buffer: receiveBuffer})
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, config.Bad("legacy.group: UDP %v on %s: %v; stop what has it ('ipvsadm --stop-daemon backup', or lvs_sync_daemon in keepalived.conf)", at, s.ifi.Name, err)
	case err != nil:
		return nil, fmt.Errorf("legacy sync: %w", err)
	}
	return c, nil
}

func (s *sockets) close() error {
	var errs []error
	if s.outc != nil {
		errs = append(errs, s.outc.Close())
	}
	for _, c := range s.in {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// interrupt makes receive return.
func (s *sockets) interrupt() {
	for _, c := range s.in {
		c.SetReadDeadline(time.Unix(1, 0))
	}
}

// watch returns nil when ctx ends, or why the sockets are no use any more:
// they are bound to an interface of that name that was deleted.
func (s *sockets) watch(ctx context.Context) error {
	for task.Pause(ctx, lookEvery) {
		now, err := net.InterfaceByName(s.ifi.Name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", s.ifi.Name, err)
		}
		if now.Index != s.ifi.Index {
			return fmt.Errorf("interface %s was made anew", s.ifi.Name)
		}
	}
	return nil
}

// receive hands on datagrams, one at a time, until reading fails or is
// interrupted.
func (s *sockets) receive(deliver func([]byte)) error {
	var one sync.Mutex
	var g errgroup.Group
	for _, c := range s.in {
		g.Go(func() error {
			defer s.interrupt() // one that fails ends all
			return s.receiveOn(c, func(ms []ipv4.Message) {
				one.Lock()
				defer one.Unlock()
				for i := range ms {
					deliver(ms[i].Buffers[0][:ms[i].N])
				}
			})
		})
	}
	return g.Wait()
}

func (s *sockets) receiveOn(c *net.UDPConn, deliver func([]ipv4.Message)) error {
	in := multicast.NewConn(c, s.group.IP.To4() == nil)
	ms := make([]ipv4.Message, max(1, receiveBatch/len(s.in)))
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, maxMessage)}
	}
	for {
		n, err := in.ReadBatch(ms, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		deliver(ms[:n])
	}
}
