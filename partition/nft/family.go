package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// A family is what differs between IPv4 and IPv6.
type family struct {
	name     string // suffix of its chains and sets
	is4      bool
	ether    uint16
	address  nftables.SetDatatype
	icmp     byte
	fragment phrase // matches fragments
	next     uint32 // offset of the next header's number, if fragment is costly
	packet   layout
	quotes   []layout // of packets that an ICMP error quotes
}

// A layout says where the fields are that pick the bucket, as the client sees
// them: in a quoted packet, which went from the service to the client, source
// and destination are exchanged. Offsets count from the named header.
type layout struct {
	addrs            expr.PayloadBase
	client, vip      uint32 // addresses
	addrLen          uint32
	clientPort, port uint32 // ports, from the transport header
	proto            expr.Any
	readable         phrase // what must hold of a quotation to be read so
}

const (
	icmpHeader = 8 // a quotation follows it (RFC 792, RFC 4443)
	ip6Header  = 40
)

var families = [...]family{
	{
		name: "ip", is4: true, ether: unix.ETH_P_IP, address: nftables.TypeIPAddr, icmp: unix.IPPROTO_ICMP,
		// RFC 791 section 3.1: more fragments, or a fragment offset. Four bytes
		// are read, with the identification before them: the kernel is quicker
		// at four than at two.
		fragment: matchBits(networkHeader, 4, []byte{0, 0, 0x3f, 0xff}, expr.CmpOpNeq, 0, 0, 0, 0),
		packet:   layout{addrs: networkHeader, client: 12, vip: 16, addrLen: 4, clientPort: 0, port: 2, proto: load(networkHeader, protoReg, 9, 1)},
		quotes: []layout{{
			addrs: transportHeader, client: icmpHeader + 16, vip: icmpHeader + 12, addrLen: 4,
			clientPort: icmpHeader + 22, port: icmpHeader + 20, proto: quotedProto(icmpHeader + 9),
			readable: rule(
				transport(icmpHeader, 0x45), // without options
				matchBits(transportHeader, icmpHeader+6, []byte{0x1f, 0xff}, expr.CmpOpEq, 0, 0),
			),
		}},
	},
	{
		name: "ip6", next: 6, ether: unix.ETH_P_IPV6, address: nftables.TypeIP6Addr, icmp: unix.IPPROTO_ICMPV6,
		fragment: phrase{
			&expr.Exthdr{
				DestRegister: unix.NFT_REG_1, Type: unix.IPPROTO_FRAGMENT, Len: 1,
				Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6,
			},
			compare(expr.CmpOpEq, 1),
		},
		packet: layout{addrs: networkHeader, client: 8, vip: 24, addrLen: 16, clientPort: 0, port: 2, proto: l4proto()},
		quotes: []layout{
			quote6(ip6Header, quotedProto(icmpHeader+6), transportNot(icmpHeader+6, unix.IPPROTO_FRAGMENT)),
			quote6(ip6Header+8, quotedProto(icmpHeader+ip6Header),
				transport(icmpHeader+6, unix.IPPROTO_FRAGMENT),
				matchBits(transportHeader, icmpHeader+ip6Header+2, []byte{0xff, 0xf8}, expr.CmpOpEq, 0, 0)),
		},
	},
}

// quote6 is the layout of a quoted IPv6 packet with its ports at an offset
// from its start.
func quote6(ports uint32, proto expr.Any, also ...phrase) layout {
	return layout{
		addrs: transportHeader, client: icmpHeader + 24, vip: icmpHeader + 8, addrLen: 16,
		clientPort: icmpHeader + ports + 2, port: icmpHeader + ports, proto: proto,
		readable: rule(append([]phrase{matchBits(transportHeader, icmpHeader, []byte{0xf0}, expr.CmpOpEq, 0x60)}, also...)...),
	}
}

// l4proto and quotedProto load a protocol's number for a key.
func l4proto() expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protoReg} }

func quotedProto(offset uint32) expr.Any { return load(transportHeader, protoReg, offset, 1) }

// protoReg is the first of the key of a service: protocol, address, port.
const protoReg = keyReg

func (f *family) isPacket() phrase {
	return meta(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, f.ether)...)
}

// whole returns rules that do something with the packets that are soon seen to
// be no fragments.
func (f *family) whole(what phrase) (rules []phrase) {
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		if f.next != 0 {
			rules = append(rules, rule(matchBytes(networkHeader, f.next, expr.CmpOpEq, proto), what))
		}
	}
	return rules
}

// has reports whether an address is of this family.
func (f *family) has(a netip.Addr) bool { return a.Is4() == f.is4 }

// flowKey loads what names a flow at keyReg: a key of the sets superseded.
func (f *family) flowKey() phrase {
	l := &f.packet
	words := l.addrLen / 4
	return phrase{
		load(l.addrs, keyReg, l.client, l.addrLen),
		load(l.addrs, keyReg+words, l.vip, l.addrLen),
		load(transportHeader, keyReg+2*words, l.clientPort, 2),
		load(transportHeader, keyReg+2*words+1, l.port, 2),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: keyReg + 2*words + 2},
	}
}

// bucketOf leaves the bucket of a flow in bucketReg: partition.Plan.Bucket, for
// the kernel.
func (t *table) bucketOf(f *family, l *layout, d partition.Division) phrase {
	if d.Method == partition.ByBlock {
		return t.blockOf(f, l, d)
	}
	var key phrase
	reg := uint32(keyReg)
	if d.Sense&partition.SrcAddr != 0 {
		key = append(key, loadClient(f, l, d, reg)...)
		reg += l.addrLen / 4
	}
	if d.Sense&partition.DstAddr != 0 {
		key = append(key, load(l.addrs, reg, l.vip, l.addrLen))
		reg += l.addrLen / 4
	}
	if d.Sense&partition.SrcPort != 0 {
		key = append(key, load(transportHeader, reg, l.clientPort, 2))
		reg++
	}
	if d.Sense&partition.DstPort != 0 {
		key = append(key, load(transportHeader, reg, l.port, 2))
		reg++
	}
	return append(key, t.jenkins(4*(reg-keyReg)))
}

// loadClient loads the client's address, masked as the division says.
func loadClient(f *family, l *layout, d partition.Division, reg uint32) phrase {
	p := phrase{load(l.addrs, reg, l.client, l.addrLen)}
	if bits := d.Bits(f.is4); bits < int(l.addrLen)*8 {
		p = append(p, and(reg, mask(bits, int(l.addrLen))))
	}
	return p
}

func mask(bits, length int) []byte {
	m := make([]byte, length)
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// blockOf looks the bucket up by the one field of the division.
func (t *table) blockOf(f *family, l *layout, d partition.Division) phrase {
	var key phrase
	blocks := t.blocks16
	switch d.Sense {
	case partition.SrcAddr:
		blocks, key = t.blocks32, loadClient(f, l, d, keyReg)
	case partition.DstAddr:
		blocks, key = t.blocks32, phrase{load(l.addrs, keyReg, l.vip, 4)}
	case partition.SrcPort:
		key = phrase{load(transportHeader, keyReg, l.clientPort, 2)}
	default:
		key = phrase{load(transportHeader, keyReg, l.port, 2)}
	}
	return append(key, valueIn(blocks, keyReg, bucketReg))
}

// addrBucketOf leaves the bucket of a packet without ports in bucketReg:
// partition.Plan.AddrBucket, for the kernel.
func (t *table) addrBucketOf(f *family) phrase {
	return phrase{load(networkHeader, keyReg, f.packet.client, f.packet.addrLen), t.jenkins(f.packet.addrLen)}
}

func (t *table) jenkins(length uint32) expr.Any {
	return &expr.Hash{
		SourceRegister: keyReg, DestRegister: bucketReg, Length: length,
		Modulus: uint32(t.divider.Buckets), Seed: t.divider.Seed, Type: expr.HashTypeJenkins,
	}
}
