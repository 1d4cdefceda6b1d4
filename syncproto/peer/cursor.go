package peer

import (
	"encoding/binary"
	"math"
	"net/netip"

	"saru/conntable"
)

// A cursor reads fields off the front of a message. After a read past the end
// it is bad and all reads return zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// uvarint reads a number of at most limit in its shortest form.
func (c *cursor) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(c.b)
	if c.bad || n <= 0 || v > limit || (n > 1 && c.b[n-1] == 0) {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// near reads the difference to clock, in the shortest form of a signed varint,
// and returns the sum, at most conntable.MaxClock.
func (c *cursor) near(clock uint64) uint64 {
	u := c.uvarint(math.MaxUint64)
	v := int64(clock) + (int64(u>>1) ^ -int64(u&1))
	if v < 0 || v > conntable.MaxClock {
		c.bad = true
		return 0
	}
	return uint64(v)
}

func (c *cursor) addr(v6 bool) netip.Addr {
	if v6 {
		if p := c.take(16); p != nil {
			return netip.AddrFrom16([16]byte(p))
		}
		return netip.Addr{}
	}
	if p := c.take(4); p != nil {
		return netip.AddrFrom4([4]byte(p))
	}
	return netip.Addr{}
}

func appendAddr(b []byte, a netip.Addr, v6 bool) []byte {
	if v6 {
		p := a.As16()
		return append(b, p[:]...)
	}
	p := a.As4()
	return append(b, p[:]...)
}
