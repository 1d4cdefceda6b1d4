package nft_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"saru/partition"
)

// A generator makes packets of every kind that a client, or a router, can send
// to a virtual address.
type generator struct {
	*rand.Rand
	vips []netip.Prefix
	full bool // no packet ends before its transport header does
}

// A generated packet, numbered in its IPv4 identification or IPv6 flow label.
type generated struct {
	kind   string
	whole  []byte
	pieces [][]byte // as sent: the packet, or its fragments in some order
}

func (p *generated) is4() bool { return p.whole[0]>>4 == 4 }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// client returns an address that is no martian.
func (g *generator) client(is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte{pick[byte](g, 11, 100, 192, 198), pick[byte](g, 1, 51), byte(g.IntN(256)), byte(1 + g.IntN(250))})
	}
	a := [16]byte{0x20, 1, 0xd, 0xb8, byte(g.IntN(256)), byte(g.IntN(3)), 0, byte(g.IntN(3))}
	copy(a[8:], g.bytes(8))
	return netip.AddrFrom16(a)
}

func (g *generator) vip() netip.Addr {
	v := pick(g, g.vips...)
	a := v.Addr().AsSlice()
	if !v.IsSingleIP() {
		a[len(a)-1] = byte(1 + g.IntN(250))
	}
	addr, _ := netip.AddrFromSlice(a)
	return addr
}

func (g *generator) port() uint16 { return pick(g, 80, 80, 21, 53, uint16(g.Uint32())) }

// packet makes the packet of a number.
func (g *generator) packet(number int) generated {
	dst := g.vip()
	src := g.client(dst.Is4())
	kind, proto, payload := g.payload(dst)
	var p generated
	if dst.Is4() {
		p = g.ipv4(uint16(number), src, dst, proto, payload)
	} else {
		p = g.ipv6(uint32(number), src, dst, proto, payload)
	}
	if len(p.pieces) > 1 {
		kind += " in fragments"
		if g.IntN(2) == 0 {
			slices.Reverse(p.pieces)
		}
	}
	p.kind = kind
	if dst.Is6() {
		p.kind += " over IPv6"
	}
	return p
}

// payload makes what an IP packet carries.
func (g *generator) payload(dst netip.Addr) (kind string, proto byte, b []byte) {
	client, port := uint16(1+g.IntN(65535)), g.port()
	switch g.IntN(12) {
	case 0, 1, 2:
		name := pick(g, "SYN", "ACK", "SYN-ACK", "RST", "FIN", "TCP without flags")
		return name, partition.TCP, g.tcp(client, port, name)
	case 3, 4:
		return "UDP datagram", partition.UDP, g.udp(client, port)
	case 5:
		chunk := pick[byte](g, 1, 0, 3, 14)
		b := append(numbers(client, port), g.bytes(8)...)
		return map[bool]string{true: "INIT", false: "SCTP"}[chunk == 1], partition.SCTP, append(append(b, chunk, 0, 0, 4), g.bytes(40)...)
	case 6:
		return "echo request", icmpProto(dst), append([]byte{echoType(dst), 0, 0, 0}, g.bytes(60)...)
	case 7:
		return "other ICMP", icmpProto(dst), append([]byte{pick(g, otherTypes(dst)...), 0, 0, 0}, g.bytes(60)...)
	case 8, 9, 10:
		return g.icmpError(dst)
	}
	odd := g.IntN(4)
	if g.full {
		odd = 2 + odd%2
	}
	switch odd {
	case 0:
		return "half a UDP header", partition.UDP, g.bytes(g.IntN(8))
	case 1:
		return "half a TCP header", partition.TCP, append(numbers(client, port), g.bytes(g.IntN(16))...)
	case 2:
		return "neighbour solicitation", icmpProto(dst), append(append([]byte{135, 0, 0, 0}, g.bytes(4)...), dst.AsSlice()...)
	}
	return "GRE, ESP or such", pick[byte](g, 47, 50, 136, 33), g.bytes(48)
}

func (g *generator) tcp(src, dst uint16, kind string) []byte {
	flags := map[string]byte{"SYN": 0x02, "ACK": 0x10, "SYN-ACK": 0x12, "RST": 0x04, "FIN": 0x11, "TCP without flags": 0}[kind]
	flags |= pick[byte](g, 0, 0, 0x08, 0x40, 0x80) // PSH, ECE, CWR
	b := append(numbers(src, dst), g.bytes(8)...)
	return append(append(b, 0x50, flags, 0x20, 0, 0, 0, 0, 0), g.bytes(g.IntN(100))...)
}

func (g *generator) udp(src, dst uint16) []byte {
	data := g.bytes(g.IntN(200))
	b := binary.BigEndian.AppendUint16(numbers(src, dst), uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

func numbers(src, dst uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
}

// icmpError quotes a packet from the service to some client, whose address
// need not be that of the router which complains.
func (g *generator) icmpError(vip netip.Addr) (kind string, proto byte, b []byte) {
	client := g.client(vip.Is4())
	quotedProto := pick[byte](g, partition.TCP, partition.UDP, partition.SCTP, partition.TCP, partition.UDP, partition.SCTP, 47)
	inner := g.tcp(g.port(), uint16(1+g.IntN(65535)), "ACK")
	kind = "ICMP error"
	if vip.Is4() {
		h := ipv4Header(0x1234, vip, client, quotedProto, len(inner))
		switch g.IntN(8) {
		case 0:
			h[7], kind = 5, "ICMP error about a later fragment"
		case 1:
			h[0], kind = 0x46, "ICMP error about a packet with options"
		case 2:
			inner, kind = inner[:3], "ICMP error cut short"
		}
		return kind, 1, slices.Concat([]byte{pick[byte](g, 3, 4, 11, 12), 4, 0, 0, 0, 0, 5, 0x78}, h, inner)
	}
	h := ipv6Header(0x1234, vip, client, quotedProto, len(inner))
	switch g.IntN(8) {
	case 0:
		h[6], kind = 44, "ICMP error about a first fragment"
		h = append(h, quotedProto, 0, 0, 1, 0, 0, 0, 9)
	case 1:
		h[6], kind = 44, "ICMP error about a later fragment"
		h = append(h, quotedProto, 0, 0, 9, 0, 0, 0, 9)
	case 2:
		inner, kind = inner[:3], "ICMP error cut short"
	case 3:
		h[6], kind = 60, "ICMP error about a packet with options"
		h = append(h, quotedProto, 0, 1, 4, 0, 0, 0, 0)
	}
	return kind, 58, slices.Concat([]byte{pick[byte](g, 1, 2, 3, 4), 0, 0, 0, 0, 0, 5, 0}, h, inner)
}

func icmpProto(a netip.Addr) byte {
	if a.Is4() {
		return 1
	}
	return 58
}

func echoType(a netip.Addr) byte {
	if a.Is4() {
		return 8
	}
	return 128
}

// otherTypes neither ask nor complain, nor belong to neighbour discovery.
func otherTypes(a netip.Addr) []byte {
	if a.Is4() {
		return []byte{0, 5, 9, 13, 14, 17, 40, 255}
	}
	return []byte{129, 130, 132, 138, 143, 200, 100}
}

func ipv4Header(id uint16, src, dst netip.Addr, proto byte, payload int) []byte {
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+payload))
	h = binary.BigEndian.AppendUint16(h, id)
	h = append(h, 0, 0, 64, proto, 0, 0)
	return slices.Concat(h, src.AsSlice(), dst.AsSlice())
}

func ipv6Header(label uint32, src, dst netip.Addr, next byte, payload int) []byte {
	h := binary.BigEndian.AppendUint32(nil, 6<<28|label)
	h = binary.BigEndian.AppendUint16(h, uint16(payload))
	return slices.Concat(append(h, next, 64), src.AsSlice(), dst.AsSlice())
}

// ipv4 makes a packet, sometimes with options, sometimes in fragments.
func (g *generator) ipv4(id uint16, src, dst netip.Addr, proto byte, payload []byte) generated {
	header := ipv4Header(id, src, dst, proto, len(payload))
	if g.IntN(8) == 0 {
		header[0]++
		header = append(header, 1, 1, 1, 0) // no operation, end of options
	}
	assemble := func(offset int, more bool, part []byte) []byte {
		h := slices.Clone(header)
		flags := uint16(offset / 8)
		if more {
			flags |= 0x2000
		} else if offset == 0 && g.IntN(2) == 0 {
			flags = 0x4000
		}
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(part)))
		binary.BigEndian.PutUint16(h[6:], flags)
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return append(h, part...)
	}
	p := generated{whole: assemble(0, false, payload)}
	g.cut(payload, func(offset int, more bool, part []byte) {
		p.pieces = append(p.pieces, assemble(offset, more, part))
	})
	return p
}

// ipv6 makes a packet, sometimes with extension headers, sometimes in
// fragments.
func (g *generator) ipv6(label uint32, src, dst netip.Addr, proto byte, payload []byte) generated {
	type extension struct {
		next byte // its own number
		body []byte
	}
	padding := []byte{1, 4, 0, 0, 0, 0}
	var first, last []extension
	if g.IntN(6) == 0 {
		first = append(first, extension{0, padding})
	}
	if g.IntN(6) == 0 {
		first = append(first, extension{43, []byte{4, 0, 0, 0, 0, 0}})
	}
	if g.IntN(6) == 0 {
		last = append(last, extension{60, padding})
	}
	// chain puts headers before what starts with the header of a number.
	chain := func(es []extension, next byte, b []byte) (byte, []byte) {
		for _, e := range slices.Backward(es) {
			b = slices.Concat([]byte{next, 0}, e.body, b)
			next = e.next
		}
		return next, b
	}
	next, body := chain(append(slices.Clone(first), last...), proto, payload)
	p := generated{whole: append(ipv6Header(label, src, dst, next, len(body)), body...)}
	next, fragmentable := chain(last, proto, payload)
	identification := g.bytes(4)
	g.cut(fragmentable, func(offset int, more bool, part []byte) {
		if offset == 0 && !more {
			p.pieces = [][]byte{p.whole}
			return
		}
		m := byte(0)
		if more {
			m = 1
		}
		fragment := slices.Concat([]byte{next, 0, byte(offset >> 8), byte(offset) | m}, identification, part)
		n, body := chain(first, 44, fragment)
		p.pieces = append(p.pieces, append(ipv6Header(label, src, dst, n, len(body)), body...))
	})
	// The kernel refuses later fragments of an extension header: such a
	// datagram has no taker. Senders put theirs before.
	if len(p.pieces) > 1 && len(last) > 0 {
		p.pieces = [][]byte{p.whole}
	}
	return p
}

// cut calls f for a payload, whole or in two or three fragments.
func (g *generator) cut(payload []byte, f func(offset int, more bool, part []byte)) {
	size := len(payload)
	// The first must hold the transport header (RFC 8200 section 4.5).
	if part := (size/(2+g.IntN(2)) + 7) &^ 7; part >= 24 && part < size && g.IntN(5) == 0 {
		size = part
	}
	for offset := 0; ; offset += size {
		end := min(offset+size, len(payload))
		f(offset, end < len(payload), payload[offset:end])
		if end == len(payload) {
			return
		}
	}
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
