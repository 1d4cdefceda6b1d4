package multicast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Config says how a socket is. The zero value will do.
type Config struct {
	Device       string // nothing comes or goes by another interface; "": by any
	Buffer       int    // for receiving, in bytes, 0: the system's; the kernel doubles it
	DontFragment bool   // datagrams larger than the path takes are refused
}

// Listen binds to exactly at, which may be a group: net.ListenPacket would take
// that for all addresses. What net.core.rmem_max does not allow of the buffer
// needs CAP_NET_ADMIN. The error of a port that is taken is unix.EADDRINUSE.
func Listen(at netip.AddrPort, cfg Config) (*net.UDPConn, error) {
	v6 := at.Addr().Is6()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close() // FilePacketConn has its own
	for _, o := range cfg.options(v6) {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.with); err != nil {
			return nil, fmt.Errorf("UDP socket: %s: %w", o.name, err)
		}
	}
	if cfg.Buffer > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, cfg.Buffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, cfg.Buffer); err != nil {
			return nil, fmt.Errorf("UDP socket: receive buffer: %w", err)
		}
	}
	if cfg.Device != "" {
		if err := unix.BindToDevice(fd, cfg.Device); err != nil {
			return nil, fmt.Errorf("UDP socket: bind to interface %s: %w", cfg.Device, err)
		}
	}
	sa, err := sockaddr(at)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, fmt.Errorf("listen on UDP %v: %w", at, err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	return c.(*net.UDPConn), nil
}

type option struct {
	name             string
	level, opt, with int
}

// options see to it that the socket hears the groups that it joined itself
// only, else it hears every group that anybody on this machine joined (ip(7),
// IP_MULTICAST_ALL).
func (cfg *Config) options(v6 bool) []option {
	out := []option{{"IP_MULTICAST_ALL", unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0}}
	whole := option{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}
	if v6 {
		out = []option{
			{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
			{"IPV6_MULTICAST_ALL", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0},
		}
		whole = option{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO}
	}
	if cfg.DontFragment {
		out = append(out, whole)
	}
	return out
}

func sockaddr(at netip.AddrPort) (unix.Sockaddr, error) {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if zone := at.Addr().Zone(); zone != "" {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", zone, err)
		}
		sa.ZoneId = uint32(ifi.Index)
	}
	return sa, nil
}

// A Conn reads and writes several datagrams with one system call: an
// ipv4.PacketConn or an ipv6.PacketConn.
type Conn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
	JoinGroup(ifi *net.Interface, group net.Addr) error
	SetMulticastInterface(ifi *net.Interface) error
	SetMulticastLoopback(on bool) error
}

// NewConn returns c, which Listen made for an address of the family, as a Conn.
func NewConn(c *net.UDPConn, v6 bool) Conn {
	if v6 {
		return ipv6.NewPacketConn(c)
	}
	return ipv4.NewPacketConn(c)
}

// OnLink makes what c sends to groups leave by ifi, reach that link alone, and
// not come back to this machine.
func OnLink(c Conn, ifi *net.Interface) error {
	var hops error
	switch c := c.(type) {
	case *ipv4.PacketConn:
		hops = c.SetMulticastTTL(1)
	case *ipv6.PacketConn:
		hops = c.SetMulticastHopLimit(1)
	}
	return errors.Join(hops, c.SetMulticastInterface(ifi), c.SetMulticastLoopback(false))
}
