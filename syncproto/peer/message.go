package peer

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"saru/conntable"
)

const (
	// protocolVersion is the newest version of the protocol, which is spoken
	// to those that understand it. The one before is understood too, and
	// spoken as long as somebody is heard that understands no more.
	//
	// A message bears the lowest version that can read it: only records and
	// the requests for a stream have another form than in version 1.
	protocolVersion = 2
	oldestVersion   = protocolVersion - 1

	typeRecords   = 1
	typeHeartbeat = 2
	typeMissing   = 3
	typeAsk       = 5
	typeReceipt   = 6
	typePull      = 16
	typeBegin     = 17
	typeBulk      = 18
	typeEnd       = 19
	typeRepair    = 20
	typeMark      = 21

	headSize = 8

	// Where a message of records has its age, and in what unit.
	ageOffset1 = headSize + 16
	ageUnit1   = time.Millisecond
	ageOffset2 = 2
	ageUnit2   = 16 * time.Millisecond

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

// A head is what every message begins with.
type head struct {
	version uint8
	typ     uint8
	age     uint16 // only in records of version 2
	node    conntable.NodeID
}

func (h *head) append(b []byte) []byte {
	b = append(b, h.version, h.typ)
	b = binary.BigEndian.AppendUint16(b, h.age)
	return binary.BigEndian.AppendUint32(b, uint32(h.node))
}

// appendHead begins a message that every version reads.
func appendHead(b []byte, typ uint8, node conntable.NodeID) []byte {
	return (&head{version: oldestVersion, typ: typ, node: node}).append(b)
}

// parse reads a message's head, and returns a cursor behind it.
func (h *head) parse(b []byte) (c cursor, err error) {
	c.b = b
	*h = head{c.u8(), c.u8(), c.u16(), conntable.NodeID(c.u32())}
	switch {
	case c.bad || h.node == 0:
		return c, errMalformed
	case h.version < oldestVersion || h.version > protocolVersion:
		return c, errVersion
	}
	return c, nil
}

// recordsHead is what a message of records has before its groups.
type recordsHead struct {
	version  uint8
	sequence uint64
	clock    uint64
	age      time.Duration // since it was first sent
}

func (h *recordsHead) append(b []byte, node conntable.NodeID) []byte {
	start := len(b)
	b = (&head{version: h.version, typ: typeRecords, node: node}).append(b)
	if h.version == 1 {
		b = binary.BigEndian.AppendUint64(b, h.sequence)
		b = binary.BigEndian.AppendUint64(b, h.clock)
		b = binary.BigEndian.AppendUint32(b, 0)
	} else {
		b = binary.BigEndian.AppendUint64(b, h.clock)
		b = binary.AppendUvarint(b, h.sequence)
	}
	setAge(b[start:], h.age)
	return b
}

func (h *recordsHead) parse(m *head, c *cursor) error {
	h.version = m.version
	if m.version == 1 {
		h.sequence, h.clock, h.age = c.u64(), c.u64(), time.Duration(c.u32())*ageUnit1
	} else {
		h.clock, h.sequence, h.age = c.u64(), c.uvarint(conntable.MaxClock), time.Duration(m.age)*ageUnit2
	}
	if c.bad || h.sequence == 0 || h.sequence > conntable.MaxClock || h.clock > conntable.MaxClock {
		return errMalformed
	}
	return nil
}

// setAge writes the age, rounded up, into a message of records that was made
// before. Nobody asks for one so old that the field is too small.
func setAge(message []byte, age time.Duration) {
	if message[0] == 1 {
		binary.BigEndian.PutUint32(message[ageOffset1:], uint32(min((age+ageUnit1-1)/ageUnit1, math.MaxUint32)))
		return
	}
	binary.BigEndian.PutUint16(message[ageOffset2:], uint16(min((age+ageUnit2-1)/ageUnit2, math.MaxUint16)))
}

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

	// What version 1 did not tell.
	version uint8  // the highest that the sender understands
	streams uint8  // that it serves now
	rate    uint32 // records that it told in the last second
	ask     uint64 // a question for all, 0 if there is none
	answers []answer
	paths   []path
}

// A path is what the sender of a heartbeat says of the way from a peer to it.
type path struct {
	node  conntable.NodeID
	size  uint16 // of the largest datagram that came lately
	alone bool   // the group's datagrams do not come: send to me, too
}

const pathAlone = 1 << 0

// An answer says that its sender's heartbeat was made after node asked.
type answer struct {
	node conntable.NodeID
	ask  uint64
}

// maxAnswers bounds what one heartbeat answers; the next one goes on.
const maxAnswers = 32

func (h *heartbeat) append(b []byte, node conntable.NodeID) []byte {
	b = appendHead(b, typeHeartbeat, node)
	for _, v := range [...]uint64{h.incarnation, h.highest, h.lowest, h.clock, h.horizon, h.digest} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, h.connections)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.port)
	b = append(append(b, byte(len(h.name))), h.name...)
	b = append(b, h.version, h.streams, byte(len(h.answers)), byte(len(h.paths)))
	b = binary.BigEndian.AppendUint32(b, h.rate)
	b = binary.BigEndian.AppendUint64(b, h.ask)
	for _, a := range h.answers {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, uint32(a.node)), a.ask)
	}
	for _, p := range h.paths {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(b, uint32(p.node)), p.size)
		b = append(b, boolByte(p.alone)*pathAlone, 0)
	}
	return b
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// parse reads a heartbeat; answers and paths reuse h's. name is a view of the
// message, to be copied by who keeps it.
func (h *heartbeat) parse(c *cursor) (name []byte, err error) {
	*h = heartbeat{
		answers: h.answers[:0], paths: h.paths[:0],
		incarnation: c.u64(), highest: c.u64(), lowest: c.u64(), clock: c.u64(), horizon: c.u64(), digest: c.u64(),
		connections: c.u32(), flags: c.u16(), port: c.u16(),
	}
	name = parseName(c)
	if c.bad || h.clock > conntable.MaxClock || h.incarnation > conntable.MaxClock || h.port == 0 ||
		h.highest > conntable.MaxClock || h.lowest > h.highest+1 {
		return nil, errMalformed
	}
	h.version = oldestVersion
	if len(c.b) > 0 {
		h.parseNew(c)
	}
	if c.bad {
		return nil, errMalformed
	}
	return name, nil
}

// parseNew reads what version 1 did not tell.
func (h *heartbeat) parseNew(c *cursor) {
	h.version, h.streams = max(c.u8(), oldestVersion), c.u8()
	answers, paths := int(c.u8()), int(c.u8())
	h.rate, h.ask = c.u32(), c.u64()
	if answers > maxAnswers || paths > maxPeers {
		c.bad = true
	}
	for range answers {
		if a := (answer{conntable.NodeID(c.u32()), c.u64()}); !c.bad {
			h.answers = append(h.answers, a)
		}
	}
	for range paths {
		p := path{node: conntable.NodeID(c.u32()), size: c.u16(), alone: c.u8()&pathAlone != 0}
		if c.u8(); !c.bad {
			h.paths = append(h.paths, p)
		}
	}
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
