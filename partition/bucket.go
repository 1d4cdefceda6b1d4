package partition

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// The bucket of a packet, exactly as the rules of partition/nft compute it.
// By hash that is nft_jhash_eval in net/netfilter/nft_hash.c: Bob Jenkins'
// lookup3 (include/linux/jhash.h) over the fields in the order of their
// constants, scaled by hash*buckets>>32. An address enters as in the packet,
// the client's masked; a port as its two bytes in the packet followed by two
// zero bytes.

// Bucket returns the bucket of a flow from client to vip under a division. It
// does not allocate.
func (p *Plan) Bucket(d Division, client, vip netip.AddrPort) int {
	if d.Method == ByBlock {
		return p.block(d, client, vip)
	}
	var buf [40]byte
	key := buf[:0]
	if d.Sense&SrcAddr != 0 {
		key = appendAddr(key, d.mask(client.Addr()))
	}
	if d.Sense&DstAddr != 0 {
		key = appendAddr(key, vip.Addr())
	}
	if d.Sense&SrcPort != 0 {
		key = append(key, byte(client.Port()>>8), byte(client.Port()), 0, 0)
	}
	if d.Sense&DstPort != 0 {
		key = append(key, byte(vip.Port()>>8), byte(vip.Port()), 0, 0)
	}
	return p.scale(key)
}

// AddrBucket returns the bucket of a packet without ports, such as an ICMP
// echo request: whatever the divisions, its source address picks it.
func (p *Plan) AddrBucket(src netip.Addr) int {
	var buf [16]byte
	return p.scale(appendAddr(buf[:0], src))
}

// mask clears the bits of a client's address that do not count.
func (d Division) mask(a netip.Addr) netip.Addr {
	if n := d.Bits(a.Is4()); n < a.BitLen() {
		if masked, err := a.Prefix(n); err == nil {
			return masked.Addr()
		}
	}
	return a
}

func (p *Plan) block(d Division, client, vip netip.AddrPort) int {
	switch d.Sense {
	case SrcAddr:
		return p.blockOf(leading32(d.mask(client.Addr())), 32)
	case DstAddr:
		return p.blockOf(leading32(vip.Addr()), 32)
	case SrcPort:
		return p.blockOf(uint32(client.Port()), 16)
	}
	return p.blockOf(uint32(vip.Port()), 16)
}

// blockOf returns the block of a value of so many bits.
func (p *Plan) blockOf(value uint32, width int) int {
	return int(uint64(value) * uint64(p.Buckets) >> width)
}

// BlockStart returns the first value of a block of a field of so many bits: a
// block ends where the next one starts.
func (p *Plan) BlockStart(bucket, width int) uint64 {
	return uint64(bucket) << width / uint64(p.Buckets)
}

func leading32(a netip.Addr) uint32 {
	var buf [16]byte
	return binary.BigEndian.Uint32(appendAddr(buf[:0], a))
}

func (p *Plan) scale(key []byte) int {
	return int(uint64(jhash(key, p.Seed)) * uint64(p.Buckets) >> 32)
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
