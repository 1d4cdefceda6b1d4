package usersync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"saru/conntable"
)

// A Kind is what happened to an entry.
type Kind uint8

// Kinds of events. A dump's records have KindNone.
const (
	KindNone    Kind = iota
	KindNew          // a packet made it
	KindState        // its state changed
	KindUpdate       // it lives on: a refresh, or its expiry put off
	KindAdopted      // the first packet of an entry that Create made or changed
	KindExpired      // it is gone from the table
)

func (k Kind) String() string {
	names := [...]string{"none", "new", "state", "update", "adopted", "expired"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Record is one entry of the kernel's table as it was at a moment. Its
// Timeout is cut to whole seconds, as the kernel's sync protocol does, but is
// never 0.
type Record struct {
	conntable.Connection
	Kind      Kind
	Stamp     uint64        // ns of CLOCK_MONOTONIC
	Cookie    uint64        // tells entries of one key apart
	Packets   uint32        // of the client, counted by the kernel
	Remaining time.Duration // until it expires if nothing comes, ms
	Bound     bool          // to an entry of a real server
	Commanded bool          // expired by Delete
}

// A Batch is the head of an event message.
type Batch struct {
	CPU     uint32
	Seq     uint64 // of the CPU's messages, without gap
	Dropped uint64 // events lost on this CPU so far
}

// ErrMalformed is in the chain of errors for messages that the module would
// not send.
var ErrMalformed = errors.New("malformed message")

func malformed(what string, n int) error {
	return fmt.Errorf("usersync: %s of %d bytes: %w", what, n, ErrMalformed)
}

var native = binary.NativeEndian

const (
	attrHeader  = 4
	genlHeader  = 4
	attrTypeMax = 0x3fff // without the flags for nests and byte order
)

func align(n int) int { return (n + 3) &^ 3 }

// attrOf returns the first attribute of a kind, or nil.
func attrOf(attrs []byte, want int) []byte {
	for len(attrs) > 0 {
		kind, v, rest, err := nextAttr(attrs)
		if err != nil {
			return nil
		}
		if kind == want {
			return v
		}
		attrs = rest
	}
	return nil
}

// nextAttr cuts the first attribute off b.
func nextAttr(b []byte) (kind int, value, rest []byte, err error) {
	if len(b) < attrHeader {
		return 0, nil, nil, malformed("attribute", len(b))
	}
	n := int(native.Uint16(b))
	if n < attrHeader || n > len(b) {
		return 0, nil, nil, malformed("attribute", n)
	}
	kind = int(native.Uint16(b[2:])) & attrTypeMax
	return kind, b[attrHeader:n], b[min(align(n), len(b)):], nil
}

// A decoder decodes messages without allocating. It is not safe for
// concurrent use.
type decoder struct {
	rec Record
	seq conntable.SeqPair
}

// events calls fn with each record of an event message's attributes; the
// record and what it points to are valid during the call only. The head comes
// first in the message, and is returned even with an error if it was read.
func (d *decoder) events(b []byte, fn func(*Record)) (Batch, error) {
	var batch Batch
	seen := 0
	for len(b) > 0 {
		kind, v, rest, err := nextAttr(b)
		if err != nil {
			return batch, err
		}
		b = rest
		switch kind {
		case attrCPU:
			if len(v) != 4 {
				return batch, malformed("CPU", len(v))
			}
			batch.CPU = native.Uint32(v)
			seen |= 1
		case attrSeq, attrDropped:
			if len(v) != 8 {
				return batch, malformed("counter", len(v))
			}
			if kind == attrSeq {
				batch.Seq = native.Uint64(v)
				seen |= 2
			} else {
				batch.Dropped = native.Uint64(v)
				seen |= 4
			}
		case attrConn:
			if err := d.record(v); err != nil {
				return batch, err
			}
			if d.rec.Kind == KindNone {
				return batch, malformed("event without a kind", len(v))
			}
			fn(&d.rec)
		}
	}
	if seen != 7 {
		return batch, malformed("event message without its head", seen)
	}
	return batch, nil
}

// conn decodes the record of a message's attributes that tell of one entry.
func (d *decoder) conn(b []byte) (*Record, error) {
	for len(b) > 0 {
		kind, v, rest, err := nextAttr(b)
		if err != nil {
			return nil, err
		}
		b = rest
		if kind == attrConn {
			if err := d.record(v); err != nil {
				return nil, err
			}
			return &d.rec, nil
		}
	}
	return nil, malformed("message without an entry", 0)
}

// The parts of a record, collected until all of it was seen.
type parts struct {
	caddr, vaddr, daddr netip.Addr
	cport, vport, dport uint16
	seen                uint32
}

const mustHave = 1<<connProtocol | 1<<connCAddr | 1<<connCPort | 1<<connVAddr | 1<<connVPort |
	1<<connFlags | 1<<connDAddr | 1<<connDPort | 1<<connState | 1<<connTimeout |
	1<<connPkts | 1<<connStamp | 1<<connCookie

// record decodes one CONN into d.rec.
func (d *decoder) record(b []byte) error {
	d.rec = Record{}
	var p parts
	for len(b) > 0 {
		kind, v, rest, err := nextAttr(b)
		if err != nil {
			return err
		}
		b = rest
		if want := connSize(kind); want >= 0 && len(v) != want {
			return malformed(fmt.Sprintf("attribute %d", kind), len(v))
		}
		if kind <= connExpectPkts {
			p.seen |= 1 << kind
		}
		if err := d.attr(&p, kind, v); err != nil {
			return err
		}
	}
	return d.finish(&p)
}

// connSize is how long an attribute must be, or -1.
func connSize(kind int) int {
	switch kind {
	case connProtocol, connKind:
		return 1
	case connCPort, connVPort, connDPort, connState:
		return 2
	case connFlags, connFWMark, connTimeout, connRemaining, connPkts:
		return 4
	case connStamp, connCookie:
		return 8
	case connSeq:
		return seqSize
	case connBound, connCommanded:
		return 0
	}
	return -1
}

func (d *decoder) attr(p *parts, kind int, v []byte) (err error) {
	r := &d.rec
	switch kind {
	case connProtocol:
		r.Protocol = v[0]
	case connCAddr:
		p.caddr, err = address(v)
	case connVAddr:
		p.vaddr, err = address(v)
	case connDAddr:
		p.daddr, err = address(v)
	case connCPort:
		p.cport = binary.BigEndian.Uint16(v)
	case connVPort:
		p.vport = binary.BigEndian.Uint16(v)
	case connDPort:
		p.dport = binary.BigEndian.Uint16(v)
	case connFlags:
		r.Flags = native.Uint32(v)
	case connState:
		r.State = native.Uint16(v)
	case connFWMark:
		r.FWMark = native.Uint32(v)
	case connTimeout:
		r.Timeout = max(milliseconds(v).Truncate(time.Second), time.Second)
	case connRemaining:
		r.Remaining = milliseconds(v)
	case connPkts:
		r.Packets = native.Uint32(v)
	case connSeq:
		word := func(i int) uint32 { return native.Uint32(v[4*i:]) }
		d.seq = conntable.SeqPair{
			In:  conntable.Seq{Init: word(0), Delta: word(1), Prev: word(2)},
			Out: conntable.Seq{Init: word(3), Delta: word(4), Prev: word(5)},
		}
		r.Seq = &d.seq
	case connPEName:
		if n := len(v); n < 2 || n > maxPEName+1 || v[n-1] != 0 {
			return malformed("engine's name", n)
		}
		r.PEName = string(v[:len(v)-1])
	case connPEData:
		if len(v) == 0 || len(v) > maxPEData {
			return malformed("engine's data", len(v))
		}
		r.PEData = v
	case connBound:
		r.Bound = true
	case connCommanded:
		r.Commanded = true
	case connKind:
		r.Kind = Kind(v[0])
	case connStamp:
		r.Stamp = native.Uint64(v)
	case connCookie:
		r.Cookie = native.Uint64(v)
	}
	return err
}

func address(v []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(v)
	if !ok {
		return a, malformed("address", len(v))
	}
	return a, nil
}

func milliseconds(v []byte) time.Duration {
	return time.Duration(native.Uint32(v)) * time.Millisecond
}

func (d *decoder) finish(p *parts) error {
	if p.seen&mustHave != mustHave {
		return fmt.Errorf("usersync: entry lacks attributes %#x: %w", mustHave&^p.seen, ErrMalformed)
	}
	if p.caddr.BitLen() != p.vaddr.BitLen() {
		return malformed("client's address", p.caddr.BitLen()/8)
	}
	r := &d.rec
	if (r.PEData == nil) != (r.PEName == "") {
		return malformed("engine's name without its data", len(r.PEName))
	}
	r.Template = r.Flags&conntable.FlagTemplate != 0
	r.Client = netip.AddrPortFrom(p.caddr, p.cport)
	r.Virtual = netip.AddrPortFrom(p.vaddr, p.vport)
	r.Dest = netip.AddrPortFrom(p.daddr, p.dport)
	return nil
}

// appendAttr appends the head of an attribute and the value, padded.
func appendAttr(b []byte, kind int, value ...byte) []byte {
	b = native.AppendUint16(b, uint16(attrHeader+len(value)))
	b = native.AppendUint16(b, uint16(kind))
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

func appendU16(b []byte, kind int, v uint16) []byte {
	return appendAttr(b, kind, native.AppendUint16(nil, v)...)
}

func appendU32(b []byte, kind int, v uint32) []byte {
	return appendAttr(b, kind, native.AppendUint32(nil, v)...)
}

func appendPort(b []byte, kind int, v uint16) []byte {
	return appendAttr(b, kind, binary.BigEndian.AppendUint16(nil, v)...)
}

// nested appends a nest that fn fills.
func nested(b []byte, kind int, fn func([]byte) []byte) []byte {
	at := len(b)
	b = fn(appendAttr(b, kind|0x8000)) // NLA_F_NESTED
	native.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

// appendKey appends what identifies c.
func appendKey(b []byte, c *conntable.Connection) []byte {
	b = appendAttr(b, connProtocol, c.Protocol)
	b = appendAttr(b, connCAddr, c.Client.Addr().AsSlice()...)
	b = appendPort(b, connCPort, c.Client.Port())
	b = appendAttr(b, connVAddr, c.Virtual.Addr().AsSlice()...)
	b = appendPort(b, connVPort, c.Virtual.Port())
	flags := c.Flags &^ conntable.FlagTemplate
	if c.Template {
		flags |= conntable.FlagTemplate
	}
	b = appendU32(b, connFlags, flags)
	if len(c.PEData) > 0 {
		b = appendAttr(b, connPEName, append([]byte(c.PEName), 0)...)
		b = appendAttr(b, connPEData, c.PEData...)
	}
	return b
}

func appendDest(b []byte, dest netip.AddrPort) []byte {
	b = appendAttr(b, connDAddr, dest.Addr().AsSlice()...)
	return appendPort(b, connDPort, dest.Port())
}

// appendState appends the rest of what a Change says.
func appendState(b []byte, ch *Change) []byte {
	b = appendU16(b, connState, ch.State)
	b = appendU32(b, connTimeout, inMilliseconds(ch.Timeout))
	if ch.FWMark != 0 {
		b = appendU32(b, connFWMark, ch.FWMark)
	}
	if ch.Remaining > 0 {
		b = appendU32(b, connRemaining, inMilliseconds(ch.Remaining))
	}
	if ch.Packets != nil {
		b = appendU32(b, connPkts, *ch.Packets)
	}
	if s := ch.Seq; s != nil {
		var v []byte
		for _, w := range []uint32{s.In.Init, s.In.Delta, s.In.Prev, s.Out.Init, s.Out.Delta, s.Out.Prev} {
			v = native.AppendUint32(v, w)
		}
		b = appendAttr(b, connSeq, v...)
	}
	return b
}

// inMilliseconds cuts what has no room in 32 bits: 49 days.
func inMilliseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 0), 1<<32-1))
}
