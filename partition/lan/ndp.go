package lan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"saru/internal/packet"
)

// A neighbour message on Ethernet (RFC 4861 sections 4.3 and 4.4), offsets from
// the frame's start:
//
//	 0 destination   6 source        12 ethertype 0x86dd
//	14 IPv6 header: 18 payload length, 20 next header 58, 21 hop limit 255, 22 source, 38 destination
//	54 type 135 or 136, code 0, checksum   58 flags   62 target   78 options
//
// An option is its type, its length in units of eight bytes, and its data.
const (
	ndHeader  = 54
	ndTarget  = 62
	ndOptions = 78
	ndLen     = ndOptions + 8 // with one address of six bytes

	solicitation  = 135
	advertisement = 136

	optionSource = 1 // link-layer address of a solicitation's sender
	optionTarget = 2 // of an advertisement's target

	flagSolicited = 0x40
	flagOverride  = 0x20
)

// An ndPacket is the content of a neighbour message.
type ndPacket struct {
	kind     byte
	flags    byte // of an advertisement
	src, dst netip.Addr
	target   netip.Addr
	mac      [6]byte // from the option that says whose address this is; zero without
}

var (
	errND    = errors.New("not a neighbour solicitation or advertisement")
	errNDSum = errors.New("neighbour message with a wrong checksum")

	allNodes    = netip.MustParseAddr("ff02::1")
	unspecified = netip.IPv6Unspecified()
)

// parseND reads a frame, as RFC 4861 sections 7.1.1 and 7.1.2 want it checked.
// What follows the packet is padding.
func parseND(b []byte) (p ndPacket, err error) {
	if len(b) < ndOptions || string(b[12:14]) != "\x86\xdd" || b[14]>>4 != 6 || b[20] != unix.IPPROTO_ICMPV6 || b[21] != 255 {
		return p, errND
	}
	end := ndHeader + int(binary.BigEndian.Uint16(b[18:]))
	if end < ndOptions || end > len(b) || b[55] != 0 || b[ndHeader] != solicitation && b[ndHeader] != advertisement {
		return p, errND
	}
	b = b[:end]
	if icmpSum(b) != 0 {
		return p, errNDSum
	}
	p = ndPacket{
		kind: b[ndHeader], flags: b[58], src: netip.AddrFrom16([16]byte(b[22:])), dst: netip.AddrFrom16([16]byte(b[38:])),
		target: netip.AddrFrom16([16]byte(b[ndTarget:])),
	}
	if p.target.IsMulticast() {
		return p, errND
	}
	for o := b[ndOptions:]; len(o) > 0; {
		size := 0
		if len(o) >= 2 {
			size = int(o[1]) * 8
		}
		if size == 0 || size > len(o) {
			return p, errND
		}
		if size == 8 && (o[0] == optionSource && p.kind == solicitation || o[0] == optionTarget && p.kind == advertisement) {
			p.mac = [6]byte(o[2:])
		}
		o = o[size:]
	}
	return p, nil
}

// appendFrame appends p, with its option, as a frame from src to dst.
func (p *ndPacket) appendFrame(b []byte, dst, src [6]byte) []byte {
	start := len(b)
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	b = append(b, "\x86\xdd\x60\x00\x00\x00\x00\x20\x3a\xff"...)
	b = append(b, p.src.AsSlice()...)
	b = append(b, p.dst.AsSlice()...)
	b = append(b, p.kind, 0, 0, 0, p.flags, 0, 0, 0)
	b = append(b, p.target.AsSlice()...)
	option := byte(optionSource)
	if p.kind == advertisement {
		option = optionTarget
	}
	b = append(b, option, 1)
	b = append(b, p.mac[:]...)
	binary.BigEndian.PutUint16(b[start+56:], icmpSum(b[start:]))
	return b
}

// icmpSum returns the checksum of a frame's ICMPv6 message over what is there:
// 0 if the one that it carries is right (RFC 4443 section 2.3).
func icmpSum(frame []byte) uint16 {
	sum := uint32(len(frame)-ndHeader) + unix.IPPROTO_ICMPV6
	for i := 22; i < len(frame); i += 2 {
		sum += uint32(frame[i]) << 8
		if i+1 < len(frame) {
			sum += uint32(frame[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// solicitedNode returns the group that solicitations of an address are sent to
// (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	g := [16]byte{0xff, 2, 11: 1, 12: 0xff}
	b := a.As16()
	copy(g[13:], b[13:])
	return netip.AddrFrom16(g)
}

// multicastMAC returns the Ethernet address of an IPv6 group (RFC 2464
// section 7).
func multicastMAC(group netip.Addr) [6]byte {
	g := group.As16()
	return [6]byte{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

// openND opens a socket that sends and receives neighbour messages on one
// interface.
func openND(ifi *net.Interface) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// The filter first: until the socket is bound it gets nothing.
	err = errors.Join(onlyND(fd), unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(unix.ETH_P_IPV6), Ifindex: ifi.Index}))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "neighbours "+ifi.Name), nil
}

// onlyND lets a packet socket receive nothing but neighbour messages: all other
// IPv6 of the LAN passes it by.
func onlyND(fd int) error {
	return packet.Only(fd,
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: ndHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: advertisement, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	)
}

// joinGroups returns a socket that keeps the interface in the groups that
// solicitations of the addresses are sent to: the kernel reports them (MLD,
// RFC 3810) and answers queriers, so that snooping switches pass them on.
func joinGroups(ifi *net.Interface, vips []netip.Addr) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, a := range vips {
		mreq := &unix.IPv6Mreq{Multiaddr: solicitedNode(a).As16(), Interface: uint32(ifi.Index)}
		err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, mreq)
		if err != nil && !errors.Is(err, unix.EADDRINUSE) { // two addresses may have one group
			unix.Close(fd)
			return nil, fmt.Errorf("join %v, the group of %v: %w; is IPv6 on there?", solicitedNode(a), a, err)
		}
	}
	return os.NewFile(uintptr(fd), "groups "+ifi.Name), nil
}
