package director

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/packet"
	"saru/internal/seal"
)

const (
	// etherType of heartbeats: IEEE Std 802, local experimental 1.
	etherType  = 0x88b5
	etherSize  = 14
	maxDgram   = 2048
	purpose    = "heartbeat"
	drainLimit = 1024 // datagrams per path and turn: a flood must not stop the ticks
)

// A path is one way that heartbeats take. Its methods never block.
type path struct {
	name   string
	fd     int
	sealer *seal.Sealer
	frame  []byte // Ethernet header, nil for UDP
	link   unix.SockaddrLinklayer
	to     unix.SockaddrInet4 // of the datagram that is sent; here it needs no allocation
	group  bool               // to is the cluster's multicast group, and all that is sent goes there
	buf    []byte
	one    unix.SockaddrLinklayer // of a frame to one MAC, as link is

	sent, unsent, received, refused uint64
}

// openUDP binds the heartbeats' port, the one after the gossip's.
func openUDP(bind netip.AddrPort, keys *seal.Keyring) (*path, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("heartbeat socket: %w", err)
	}
	at := netip.AddrPortFrom(bind.Addr(), bind.Port()+1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		unix.Close(fd)
		return nil, config.Bad("cluster.bind = %q: heartbeats take the next port, %v: %v; free it or choose another port", bind, at, err)
	}
	return &path{name: "udp", fd: fd, sealer: seal.NewSealer(keys, purpose)}, nil
}

// groupOf returns the multicast group of a cluster's heartbeats, of those of the
// IPv4 local scope (RFC 2365, section 6.1). Clusters on one LAN mostly have
// different ones, and so do not disturb each other.
func groupOf(cluster uint32) netip.Addr {
	low := binary.BigEndian.AppendUint16(nil, uint16(cluster))
	return netip.AddrFrom4([4]byte{239, 255, low[0], low[1]})
}

// openGroup opens the path of multicast to the group, on the interface that has
// the address bind.
func openGroup(bind netip.AddrPort, group netip.Addr, keys *seal.Keyring) (*path, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("heartbeat group: %w", err)
	}
	to := unix.SockaddrInet4{Port: int(bind.Port()) + 1, Addr: group.As4()}
	err = errors.Join(
		// Nodes of one host have the same.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, bind.Addr().As4()),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0),
		unix.SetsockoptIPMreq(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: group.As4(), Interface: bind.Addr().As4()}),
		unix.Bind(fd, &to))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("heartbeat group %v on the interface of %v: %w", group, bind.Addr(), err)
	}
	return &path{name: "group", fd: fd, sealer: seal.NewSealer(keys, purpose), to: to, group: true}, nil
}

// broadcast is where frames go in mode forward, which has no shared MAC.
var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// openFrames opens the path of frames to the shared MAC, or to all.
func openFrames(ifi *net.Interface, mac net.HardwareAddr, keys *seal.Keyring) (*path, error) {
	return openFramesOf(etherType, ifi, mac, seal.NewSealer(keys, purpose))
}

// openFramesOf opens a path of frames of some type.
func openFramesOf(etherType uint16, ifi *net.Interface, mac net.HardwareAddr, sealer *seal.Sealer) (*path, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("heartbeat frames on %s: %w", ifi.Name, err)
	}
	var address [8]byte
	copy(address[:], mac)
	err = errors.Join(
		onlyTo(fd, mac),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(etherType), Ifindex: ifi.Index}))
	if mac[0]&1 == 0 {
		err = errors.Join(err, unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{
			Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_UNICAST, Alen: 6, Address: address,
		}))
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("heartbeat frames on %s: %w", ifi.Name, err)
	}
	frame := append([]byte(nil), mac...)
	frame = append(frame, ifi.HardwareAddr...)
	frame = binary.BigEndian.AppendUint16(frame, etherType)
	p := &path{name: "frame", fd: fd, sealer: sealer, frame: frame}
	p.link = unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(etherType), Ifindex: ifi.Index, Halen: 6, Addr: address}
	p.one = p.link
	return p, nil
}

// sendFrame seals plain and sends it in a frame to one MAC.
func (p *path) sendFrame(plain []byte, mac [6]byte) {
	buf, _ := p.sealer.Seal(append(p.buf[:0], p.frame...), plain)
	p.buf = buf
	copy(buf, mac[:])
	copy(p.one.Addr[:], mac[:])
	p.count(unix.Sendto(p.fd, buf, 0, &p.one))
}

// send seals plain and sends it to all of to, to the group, or to the shared
// MAC. A path that cannot send now loses the message, as the network may.
func (p *path) send(plain []byte, to []netip.AddrPort) {
	buf, _ := p.sealer.Seal(append(p.buf[:0], p.frame...), plain)
	p.buf = buf
	if p.frame != nil {
		p.count(unix.Sendto(p.fd, buf, 0, &p.link))
		return
	}
	if p.group {
		p.count(unix.Sendto(p.fd, buf, 0, &p.to))
		return
	}
	for _, a := range to {
		p.to.Port, p.to.Addr = int(a.Port()), a.Addr().As4()
		p.count(unix.Sendto(p.fd, buf, 0, &p.to))
	}
}

func (p *path) count(err error) {
	if err != nil {
		p.unsent++
	} else {
		p.sent++
	}
}

// receive returns the next datagram and its sender, or nil when there is none.
func (p *path) receive(buf []byte) ([]byte, netip.AddrPort) {
	for range 8 {
		n, from, err := recvFrom(p.fd, buf)
		switch {
		case err == unix.EAGAIN:
			return nil, netip.AddrPort{}
		case err != 0:
			continue // an ICMP error, or the link went down: told once
		case p.frame == nil:
			return buf[:n], from
		case n <= etherSize:
			p.refused++
		default:
			return buf[etherSize:n], netip.AddrPort{}
		}
	}
	return nil, netip.AddrPort{}
}

// recvFrom is recvfrom(2) without waiting, for IPv4; unix.Recvfrom would
// allocate the address. Of other families it returns none.
func recvFrom(fd int, buf []byte) (n int, from netip.AddrPort, errno unix.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	r, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)),
		unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, from, errno
	}
	if in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)); in.Family == unix.AF_INET {
		from = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), packet.NetworkOrder(in.Port))
	}
	return int(r), from, 0
}

func (p *path) close() error {
	if p == nil {
		return nil
	}
	return unix.Close(p.fd)
}
