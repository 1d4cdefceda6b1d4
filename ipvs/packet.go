package ipvs

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// payload returns the UDP payload of an IPv4 packet from the address from to
// the group and port to, or false for any other packet: an interface gets
// more than our records, such as IGMP reports (RFC 791 section 3.1, RFC 768).
func payload(p []byte, from netip.Addr, to netip.AddrPort) ([]byte, bool) {
	const udpHeader = 8
	if len(p) < 20 || p[0]>>4 != 4 {
		return nil, false
	}
	head, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if head < 20 || total > len(p) || total < head+udpHeader {
		return nil, false
	}
	if fragment := binary.BigEndian.Uint16(p[6:])&0x3fff != 0; fragment || p[9] != unix.IPPROTO_UDP {
		return nil, false
	}
	if [4]byte(p[12:16]) != from.As4() || [4]byte(p[16:20]) != to.Addr().As4() {
		return nil, false
	}
	udp := p[head:total]
	size := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != to.Port() || size < udpHeader || size > len(udp) {
		return nil, false
	}
	return udp[udpHeader:size], true
}
