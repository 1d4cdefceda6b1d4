package partition

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
)

// A Sense is the set of packet fields that pick the bucket, seen from the
// client: its own address and port are the source. Replies of real servers
// are judged in the mirrored sense.
type Sense uint8

// The fields, in the order in which they enter the hash.
const (
	SrcAddr Sense = 1 << iota
	DstAddr
	SrcPort
	DstPort
)

var senseNames = []struct {
	sense Sense
	name  string
}{{SrcAddr, "src-addr"}, {DstAddr, "dst-addr"}, {SrcPort, "src-port"}, {DstPort, "dst-port"}}

// ParseSense reads a field or a comma-joined list of fields, in any order.
func ParseSense(text string) (Sense, error) {
	var s Sense
fields:
	for field := range strings.SplitSeq(text, ",") {
		for _, n := range senseNames {
			if strings.TrimSpace(field) == n.name {
				s |= n.sense
				continue fields
			}
		}
		return 0, fmt.Errorf("%q is not a sense: use src-port, src-addr, dst-port, dst-addr or a comma-joined list of them", text)
	}
	return s, nil
}

// Valid reports whether s names at least one field and nothing else.
func (s Sense) Valid() bool { return s != 0 && s&^(SrcAddr|DstAddr|SrcPort|DstPort) == 0 }

// String returns what ParseSense reads.
func (s Sense) String() string {
	var names []string
	for _, n := range senseNames {
		if s&n.sense != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// Mirror returns the sense with source and destination exchanged.
func (s Sense) Mirror() Sense {
	const src, dst = SrcAddr | SrcPort, DstAddr | DstPort
	return s&src<<1 | s&dst>>1
}

// A Hash maps packets to buckets as the kernel's rules of partition/nft do:
// nft_jhash_eval in net/netfilter/nft_hash.c, which is Bob Jenkins' lookup3
// (include/linux/jhash.h) over the fields in the order of their constants,
// scaled by hash*buckets>>32. An address enters as in the packet; a port as
// its two bytes in the packet followed by two zero bytes.
type Hash struct {
	Sense   Sense
	Seed    uint32
	Buckets int
}

// Bucket returns the bucket of a packet of a protocol with ports: TCP, UDP,
// UDP-Lite, SCTP or DCCP. It does not allocate.
func (h Hash) Bucket(src, dst netip.AddrPort) int {
	var buf [40]byte
	key := buf[:0]
	if h.Sense&SrcAddr != 0 {
		key = appendAddr(key, src.Addr())
	}
	if h.Sense&DstAddr != 0 {
		key = appendAddr(key, dst.Addr())
	}
	if h.Sense&SrcPort != 0 {
		key = append(key, byte(src.Port()>>8), byte(src.Port()), 0, 0)
	}
	if h.Sense&DstPort != 0 {
		key = append(key, byte(dst.Port()>>8), byte(dst.Port()), 0, 0)
	}
	return h.scale(key)
}

// AddrBucket returns the bucket of a packet without ports, such as an ICMP
// echo request: whatever the sense, its source address picks it.
func (h Hash) AddrBucket(src netip.Addr) int {
	var buf [16]byte
	return h.scale(appendAddr(buf[:0], src))
}

func (h Hash) scale(key []byte) int {
	return int(uint64(jhash(key, h.Seed)) * uint64(h.Buckets) >> 32)
}

func appendAddr(key []byte, a netip.Addr) []byte {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return append(key, b[:]...)
	}
	b := a.As16()
	return append(key, b[:]...)
}

// jhash is the function of that name in include/linux/jhash.h: blocks of
// twelve bytes are read as words of the host, the tail byte by byte.
func jhash(key []byte, seed uint32) uint32 {
	a := 0xdeadbeef + uint32(len(key)) + seed
	b, c := a, a
	for ; len(key) > 12; key = key[12:] {
		a += binary.NativeEndian.Uint32(key)
		b += binary.NativeEndian.Uint32(key[4:])
		c += binary.NativeEndian.Uint32(key[8:])
		a, b, c = mix(a, b, c)
	}
	if len(key) == 0 {
		return c
	}
	var tail [12]byte
	copy(tail[:], key)
	a += binary.LittleEndian.Uint32(tail[0:])
	b += binary.LittleEndian.Uint32(tail[4:])
	c += binary.LittleEndian.Uint32(tail[8:])
	return final(a, b, c)
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a -= c
	a ^= bits.RotateLeft32(c, 4)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 6)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 8)
	b += a
	a -= c
	a ^= bits.RotateLeft32(c, 16)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 19)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func final(a, b, c uint32) uint32 {
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c
}
