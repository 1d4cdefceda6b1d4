package legacy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"saru/internal/config"
)

const (
	receiveBuffer = 8 << 20 // bytes asked of the kernel, which doubles it
	ipUDPHeaders  = 20 + 8
)

// sockets are a Link's, on the interface as it is now.
type sockets struct {
	ifi   *net.Interface
	in    *net.UDPConn
	outc  *net.UDPConn
	out   *ipv4.PacketConn // of outc
	group *net.UDPAddr
	room  int // for a message that is not fragmented, in bytes
}

func openSockets(name string, group netip.AddrPort) (*sockets, error) {
	ifi, err := config.Interface("legacy.interface", name)
	if err != nil {
		return nil, err
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, config.Bad("legacy.interface = %q: is down; bring it up first ('ip link set %s up')", name, name)
	}
	s := &sockets{ifi: ifi, group: net.UDPAddrFromAddrPort(group), room: max(576, ifi.MTU) - ipUDPHeaders}
	if err := s.open(group); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *sockets) open(group netip.AddrPort) (err error) {
	if s.in, err = listen(s.ifi.Name, group); err != nil {
		return err
	}
	if s.outc, err = listen(s.ifi.Name, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)); err != nil {
		return err
	}
	s.out = ipv4.NewPacketConn(s.outc)
	err = errors.Join(
		ipv4.NewPacketConn(s.in).JoinGroup(s.ifi, s.group),
		s.out.SetMulticastInterface(s.ifi),
		s.out.SetMulticastTTL(ttl),
		s.out.SetMulticastLoopback(false))
	if err != nil {
		return config.Bad("legacy.interface = %q: cannot do multicast to %v: %v; use the interface of the directors' sync daemons", s.ifi.Name, group, err)
	}
	return nil
}

// listen binds to exactly at on the interface. The kernel's backup thread of
// the tap may have the same address and port on another interface.
func listen(ifname string, at netip.AddrPort) (*net.UDPConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("legacy sync: UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "legacy")
	defer f.Close() // FilePacketConn has its own
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// Without CAP_NET_ADMIN as much as net.core.rmem_max allows.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return nil, fmt.Errorf("legacy sync: receive buffer: %w", err)
		}
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0), // only groups that are joined here
		unix.BindToDevice(fd, ifname))
	if err != nil {
		return nil, fmt.Errorf("legacy sync: socket on %s: %w", ifname, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return nil, config.Bad("legacy.group: UDP %v on %s: %v; stop what has it ('ipvsadm --stop-daemon backup', or lvs_sync_daemon in keepalived.conf)", at, ifname, err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("legacy sync: UDP socket: %w", err)
	}
	return c.(*net.UDPConn), nil
}

func (s *sockets) close() error {
	var errs []error
	for _, c := range []*net.UDPConn{s.in, s.outc} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// interrupt makes receive return.
func (s *sockets) interrupt() { s.in.SetReadDeadline(time.Unix(1, 0)) }

// watch returns nil when ctx ends, or why the sockets are no use any more:
// they are bound to an interface of that name that was deleted.
func (s *sockets) watch(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := net.InterfaceByName(s.ifi.Name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", s.ifi.Name, err)
		}
		if now.Index != s.ifi.Index {
			return fmt.Errorf("interface %s was made anew", s.ifi.Name)
		}
	}
}

// receive hands on datagrams until reading fails or is interrupted.
func (s *sockets) receive(deliver func([]byte)) error {
	pc := ipv4.NewPacketConn(s.in)
	ms := make([]ipv4.Message, receiveBatch)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, maxMessage)}
	}
	for {
		n, err := pc.ReadBatch(ms, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		for i := range ms[:n] {
			deliver(ms[i].Buffers[0][:ms[i].N])
		}
	}
}
