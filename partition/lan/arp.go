package lan

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"saru/internal/packet"
)

// An ARP frame as on Ethernet (RFC 826), offsets from the frame's start:
//
//	 0 destination   6 source        12 ethertype 0x0806
//	14 hardware 1   16 protocol 0x0800   18 sizes 6, 4   20 operation
//	22 sender MAC   28 sender IP     32 target MAC   38 target IP   42 end
const arpLen = 42

const (
	opRequest = 1
	opReply   = 2
)

// An arpPacket is the content of an ARP frame.
type arpPacket struct {
	op                   uint16
	senderMAC, targetMAC [6]byte
	sender, target       netip.Addr
}

var errARP = errors.New("not an ARP packet for IPv4 on Ethernet")

// parseARP reads a frame. What follows the packet is padding.
func parseARP(b []byte) (p arpPacket, err error) {
	if len(b) < arpLen || string(b[12:20]) != "\x08\x06\x00\x01\x08\x00\x06\x04" {
		return p, errARP
	}
	p.op = binary.BigEndian.Uint16(b[20:])
	p.senderMAC, p.targetMAC = [6]byte(b[22:]), [6]byte(b[32:])
	p.sender, p.target = netip.AddrFrom4([4]byte(b[28:])), netip.AddrFrom4([4]byte(b[38:]))
	return p, nil
}

// appendFrame appends p as a frame from src to dst.
func (p *arpPacket) appendFrame(b []byte, dst, src [6]byte) []byte {
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	b = append(b, "\x08\x06\x00\x01\x08\x00\x06\x04"...)
	b = binary.BigEndian.AppendUint16(b, p.op)
	b = append(b, p.senderMAC[:]...)
	b = append(b, p.sender.AsSlice()...)
	b = append(b, p.targetMAC[:]...)
	return append(b, p.target.AsSlice()...)
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func unicast(mac [6]byte) bool { return mac[0]&1 == 0 && mac != [6]byte{} }

// openARP opens a socket that sends and receives ARP frames on one interface,
// and holds the membership of the shared MAC.
func openARP(ifi *net.Interface, mac [6]byte) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(unix.ETH_P_ARP), Ifindex: ifi.Index}),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{
			Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_UNICAST, Alen: 6, Address: [8]byte(append(mac[:], 0, 0)),
		}))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "arp "+ifi.Name), nil
}
