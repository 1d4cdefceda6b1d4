package partition

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
)

// Protocol numbers and types that decide how a packet is judged.
const (
	protoICMP     = 1
	protoICMPv6   = 58
	protoFragment = 44 // IPv6 fragment header (RFC 8200 section 4.5)

	sctpInit = 1 // chunk type; INIT is always alone (RFC 9260 section 3.2)
)

// A Packet is what of an IP packet decides who takes it.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8 // of what follows the last extension header

	// Fragment is set for an IPv4 fragment, the first one too, and for all
	// with an IPv6 fragment header. The fields below are not filled then.
	Fragment bool

	// Short is set where the transport header is cut off before the fields
	// below.
	Short bool

	SrcPort, DstPort uint16 // of the protocols in Ported
	Opens            bool   // TCP SYN without ACK; SCTP INIT
	ICMP             uint8  // type of an ICMP or ICMPv6 message
	Quote            Quote  // what an ICMP error quotes
}

// A Quote is the start of a packet that an ICMP error speaks of. It went from
// a service to its client, so its source is the virtual address.
type Quote struct {
	Readable         bool // up to the ports, and of a protocol with ports
	Proto            uint8
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// The errors of ParsePacket.
var (
	ErrNotIP     = errors.New("not an IP packet")
	ErrBadHeader = errors.New("IP header cut off or in contradiction to itself")
)

// ParsePacket reads an IP packet, from its IP header on; what follows the
// length that the header gives is ignored. What ParsePacket refuses the kernel
// drops before any rule (nft_set_pktinfo_ipv4_ingress and
// nft_set_pktinfo_ipv6_ingress in include/net/netfilter). It does not
// allocate.
func ParsePacket(b []byte) (Packet, error) { return ParseHead(b, len(b)) }

// ParseHead is ParsePacket for a packet of which only the head is at hand;
// whole is its length. Fields that lie beyond the head count as cut off.
func ParseHead(b []byte, whole int) (Packet, error) {
	if len(b) == 0 {
		return Packet{}, ErrNotIP
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b, whole)
	case 6:
		return parse6(b, whole)
	}
	return Packet{}, ErrNotIP
}

func parse4(b []byte, whole int) (Packet, error) {
	if len(b) < 20 {
		return Packet{}, ErrBadHeader
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || header > len(b) || total < header || total > whole {
		return Packet{}, ErrBadHeader
	}
	p := Packet{
		Proto: b[9],
		Src:   netip.AddrFrom4([4]byte(b[12:])), Dst: netip.AddrFrom4([4]byte(b[16:])),
		Fragment: binary.BigEndian.Uint16(b[6:])&0x3fff != 0,
	}
	p.transport(b[header:min(total, len(b))])
	return p, nil
}

func parse6(b []byte, whole int) (Packet, error) {
	const header = 40
	if len(b) < header {
		return Packet{}, ErrBadHeader
	}
	total := header + int(binary.BigEndian.Uint16(b[4:]))
	if total > whole {
		return Packet{}, ErrBadHeader
	}
	p := Packet{Src: netip.AddrFrom16([16]byte(b[8:])), Dst: netip.AddrFrom16([16]byte(b[24:]))}
	proto, rest, fragment, ok := skipExtensions(b[6], b[header:min(total, len(b))])
	if !ok {
		return Packet{}, ErrBadHeader
	}
	p.Proto, p.Fragment = proto, fragment
	p.transport(rest)
	return p, nil
}

// skipExtensions is ipv6_find_hdr in net/ipv6/exthdrs_core.c, looking for the
// last header.
func skipExtensions(next uint8, b []byte) (proto uint8, rest []byte, fragment, ok bool) {
	const (
		hopByHop, routing, authentication, destination = 0, 43, 51, 60 // RFC 8200, RFC 4302
	)
	for {
		size := 0
		switch next {
		case hopByHop, routing, destination:
			if len(b) < 2 {
				return 0, nil, false, false
			}
			size = (int(b[1]) + 1) * 8
		case authentication:
			if len(b) < 2 {
				return 0, nil, false, false
			}
			size = (int(b[1]) + 2) * 4
		case protoFragment:
			if len(b) < 8 {
				return 0, nil, false, false
			}
			fragment, size = true, 8
			if binary.BigEndian.Uint16(b[2:])&0xfff8 != 0 {
				// What follows is from the middle. The kernel cannot know
				// where the extension headers end, and refuses.
				last := !slices.Contains([]uint8{hopByHop, routing, protoFragment, authentication, destination}, b[0])
				return b[0], nil, true, last
			}
		default:
			return next, b, fragment, true
		}
		next = b[0]
		b = b[min(size, len(b)):]
	}
}

// transport reads the transport header from b.
func (p *Packet) transport(b []byte) {
	if p.Fragment {
		return
	}
	switch p.Proto {
	case TCP:
		const flags, syn, ack = 13, 0x02, 0x10
		if p.Short = len(b) < 16; !p.Short { // the rules read the flags in the midst of four bytes
			p.ports(b)
			p.Opens = b[flags]&(syn|ack) == syn
		}
	case UDP:
		if p.Short = len(b) < 4; !p.Short {
			p.ports(b)
		}
	case SCTP:
		const chunk = 12
		if p.Short = len(b) <= chunk; !p.Short {
			p.ports(b)
			p.Opens = b[chunk] == sctpInit
		}
	case protoICMP, protoICMPv6:
		const message = 8 // its header, which the quotation follows
		if p.Short = len(b) < 1; p.Short {
			return
		}
		p.ICMP = b[0]
		switch {
		case len(b) < message:
		case p.Proto == protoICMP && p.Src.Is4() && slices.Contains(icmpErrors, p.ICMP):
			p.Quote = quote4(b[message:])
		case p.Proto == protoICMPv6 && p.Src.Is6() && slices.Contains(icmpv6Errors, p.ICMP):
			p.Quote = quote6(b[message:])
		}
	}
}

func (p *Packet) ports(b []byte) {
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

// The messages that quote a packet.
var (
	icmpErrors   = []uint8{3, 4, 11, 12} // RFC 792: unreachable, quench, time exceeded, parameter
	icmpv6Errors = []uint8{1, 2, 3, 4}   // RFC 4443: unreachable, too big, time exceeded, parameter
)

// ICMPErrors returns the types of the ICMP messages, or the ICMPv6 messages,
// that quote a packet.
func ICMPErrors(is4 bool) []uint8 {
	if is4 {
		return slices.Clone(icmpErrors)
	}
	return slices.Clone(icmpv6Errors)
}

// Neighbours are the types of the ICMPv6 messages that find routers and
// neighbours (RFC 4861 section 4), the first and the last.
var Neighbours = [2]uint8{133, 137}

// quote4 reads a quoted IPv4 packet. The rules of nftables read fields at
// fixed places only, so one with options counts as not readable.
func quote4(b []byte) Quote {
	if len(b) < 24 || b[0] != 0x45 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 || !slices.Contains(Ported, b[9]) {
		return Quote{}
	}
	return Quote{
		Readable: true, Proto: b[9],
		Src: netip.AddrFrom4([4]byte(b[12:])), Dst: netip.AddrFrom4([4]byte(b[16:])),
		SrcPort: binary.BigEndian.Uint16(b[20:]), DstPort: binary.BigEndian.Uint16(b[22:]),
	}
}

// quote6 reads a quoted IPv6 packet without extension headers, or with that
// of a first fragment.
func quote6(b []byte) Quote {
	if len(b) < 44 || b[0]>>4 != 6 {
		return Quote{}
	}
	proto, rest := b[6], b[40:]
	if proto == protoFragment && len(rest) >= 12 && binary.BigEndian.Uint16(rest[2:])&0xfff8 == 0 {
		proto, rest = rest[0], rest[8:]
	}
	if !slices.Contains(Ported, proto) {
		return Quote{}
	}
	return Quote{
		Readable: true, Proto: proto,
		Src: netip.AddrFrom16([16]byte(b[8:])), Dst: netip.AddrFrom16([16]byte(b[24:])),
		SrcPort: binary.BigEndian.Uint16(rest), DstPort: binary.BigEndian.Uint16(rest[2:]),
	}
}
