package peer

import (
	"encoding/binary"
	"errors"

	"saru/conntable"
)

const (
	protocolVersion = 1

	typeRecords   = 1
	typeHeartbeat = 2
	typeMissing   = 3
	typePull      = 16
	typeBegin     = 17
	typeBulk      = 18
	typeEnd       = 19
	typeRepair    = 20

	headSize        = 8
	recordsHeadSize = headSize + 8 + 8 + 4
	ageOffset       = headSize + 16

	// MaxName is the longest name of a node, in bytes.
	MaxName = 64
	// maxRanges is the most ranges of one message "missing".
	maxRanges = 64
)

const (
	flagSynced = 1 << iota
	flagAnswer
)

var (
	errVersion   = errors.New("another version of the protocol")
	errMalformed = errors.New("malformed message")
)

func appendHead(b []byte, typ uint8, node conntable.NodeID) []byte {
	return binary.BigEndian.AppendUint32(append(b, protocolVersion, typ, 0, 0), uint32(node))
}

// parseHead returns a message's type and node and a cursor behind its head.
func parseHead(b []byte) (typ uint8, node conntable.NodeID, c cursor, err error) {
	c.b = b
	version := c.u8()
	typ = c.u8()
	c.u16()
	node = conntable.NodeID(c.u32())
	switch {
	case c.bad || node == 0:
		return 0, 0, c, errMalformed
	case version != protocolVersion:
		return 0, 0, c, errVersion
	}
	return typ, node, c, nil
}

type recordsHead struct {
	sequence uint64
	clock    uint64
	ageMS    uint32
}

func (h *recordsHead) append(b []byte, node conntable.NodeID) []byte {
	b = appendHead(b, typeRecords, node)
	b = binary.BigEndian.AppendUint64(b, h.sequence)
	b = binary.BigEndian.AppendUint64(b, h.clock)
	return binary.BigEndian.AppendUint32(b, h.ageMS)
}

func (h *recordsHead) parse(c *cursor) error {
	*h = recordsHead{c.u64(), c.u64(), c.u32()}
	if c.bad || h.sequence == 0 || h.clock > conntable.MaxClock {
		return errMalformed
	}
	return nil
}

// setAge writes the age into a message of records that was made before.
func setAge(message []byte, ms uint32) { binary.BigEndian.PutUint32(message[ageOffset:], ms) }

type heartbeat struct {
	incarnation uint64
	highest     uint64
	lowest      uint64
	clock       uint64
	horizon     uint64
	digest      uint64
	connections uint32
	flags       uint16
	port        uint16
	name        string
}

func (h *heartbeat) append(b []byte, node conntable.NodeID) []byte {
	b = appendHead(b, typeHeartbeat, node)
	for _, v := range [...]uint64{h.incarnation, h.highest, h.lowest, h.clock, h.horizon, h.digest} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, h.connections)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.port)
	return append(append(b, byte(len(h.name))), h.name...)
}

// parse reads a heartbeat. name is a view of the message, to be copied by who
// keeps it.
func (h *heartbeat) parse(c *cursor) (name []byte, err error) {
	*h = heartbeat{
		incarnation: c.u64(), highest: c.u64(), lowest: c.u64(), clock: c.u64(), horizon: c.u64(), digest: c.u64(),
		connections: c.u32(), flags: c.u16(), port: c.u16(),
	}
	name = parseName(c)
	if c.bad || h.clock > conntable.MaxClock || h.incarnation > conntable.MaxClock || h.port == 0 ||
		h.highest > conntable.MaxClock || h.lowest > h.highest+1 {
		return nil, errMalformed
	}
	return name, nil
}

// parseName reads a name: 1 to MaxName printable ASCII bytes, since it goes
// to logs and terminals.
func parseName(c *cursor) []byte {
	n := int(c.u8())
	name := c.take(n)
	if n == 0 || n > MaxName {
		c.bad = true
	}
	for _, ch := range name {
		if ch <= ' ' || ch > '~' {
			c.bad = true
		}
	}
	return name
}

// A missing asks for ranges of datagrams of records.
type missing struct {
	boot   [8]byte
	ranges []span
}

func (m *missing) append(b []byte, node conntable.NodeID) []byte {
	b = append(appendHead(b, typeMissing, node), m.boot[:]...)
	n := min(len(m.ranges), maxRanges)
	b = append(b, 0, byte(n), 0, 0)
	for _, r := range m.ranges[:n] {
		b = binary.BigEndian.AppendUint64(b, r.from)
		b = binary.BigEndian.AppendUint32(b, uint32(min(r.to-r.from+1, 1<<32-1)))
	}
	return b
}

// parse reads the message; ranges reuse m's.
func (m *missing) parse(c *cursor) error {
	copy(m.boot[:], c.take(8))
	n := int(c.u16())
	c.u16()
	m.ranges = m.ranges[:0]
	if c.bad || n == 0 || n > maxRanges {
		return errMalformed
	}
	for range n {
		from, many := c.u64(), c.u32()
		if c.bad || from == 0 || many == 0 || from > conntable.MaxClock {
			return errMalformed
		}
		m.ranges = append(m.ranges, span{from, from + uint64(many) - 1})
	}
	return nil
}
