package membership

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"saru/partition"
)

const (
	// wireVersion is the version that is spoken. Layouts only ever grow at
	// their end, so that of the next version is understood too, and builds one
	// version apart run together. Versions 1 and 2 had other layouts.
	wireVersion   = 3
	oldestVersion = 3
	newestVersion = wireVersion + 1
	headerSize    = 24
	// heartbeatFixed is the size of what follows a heartbeat's header, up to
	// the sets.
	heartbeatFixed = 73

	// MaxBuckets is the most buckets that a share can have.
	MaxBuckets = partition.MaxBuckets
	// partOwners is how many buckets one part of an assignment has.
	partOwners = 1024

	// MaxMessage bounds an encoded message, in bytes: sealed, it passes any
	// Ethernet in one frame.
	MaxMessage = 1400
	// MaxName bounds a node's name, in bytes (that of a host name's label).
	MaxName = 63
	// MaxLease bounds a lease: whoever hears of one may have to wait for it.
	MaxLease = 10 * time.Second
	// MaxNodes bounds a share's members; an owner's index is half a byte.
	MaxNodes = 16
)

// Type tells messages apart.
type Type uint8

// The messages.
const (
	TypeHeartbeat Type = 1 + iota
	TypeAck
	TypeAssign
	TypeFetch
	TypeProbe
	TypeProof
)

// Why a message was not understood. Each is one counter of the receiver.
var (
	ErrTruncated = errors.New("truncated message")
	ErrVersion   = errors.New("message of another version")
	ErrMalformed = errors.New("malformed message")
)

// A NodeID names a node: the first 8 bytes of the SHA-256 of its name.
type NodeID uint64

// ID returns the NodeID of the node called name.
func ID(name string) NodeID {
	sum := sha256.Sum256([]byte(name))
	return NodeID(binary.BigEndian.Uint64(sum[:]))
}

func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ClusterID is a cluster's name on the wire.
func ClusterID(name string) uint32 {
	sum := sha256.Sum256([]byte("cluster " + name))
	return binary.BigEndian.Uint32(sum[:])
}

// An Epoch numbers assignments: they are ordered by term, then counter, then
// issuer (the incarnation that issued it).
type Epoch struct {
	Term    uint32
	Counter uint32
	Issuer  uint64
}

// Compare is -1, 0 or 1 as e is lower than, equal to or higher than o.
func (e Epoch) Compare(o Epoch) int {
	return cmp.Or(cmp.Compare(e.Term, o.Term), cmp.Compare(e.Counter, o.Counter), cmp.Compare(e.Issuer, o.Issuer))
}

func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Term, e.Counter) }

// A Header begins every message.
type Header struct {
	Share   uint16
	Cluster uint32
	From    NodeID
	Inc     uint64
}

// State is a director's state as its heartbeats tell it.
type State uint8

// The states of a director.
const (
	Joining  State = iota // listens, waits for state; claims nothing new
	Ready                 // eligible for a share
	Draining              // gives its share away, stays a member
	Fenced                // its lease lapsed: closes everything, then joins anew
	Left                  // has closed everything and gone

	// Degraded is for people only: Ready, but the last to get a share. On the
	// wire it is a flag.
	Degraded
)

func (s State) String() string {
	switch s {
	case Joining:
		return "joining"
	case Ready:
		return "ready"
	case Draining:
		return "draining"
	case Fenced:
		return "fenced"
	case Left:
		return "left"
	case Degraded:
		return "degraded"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// A Message is one of *Heartbeat, *Ack, *Assignment, *Fetch, *Probe, *Proof.
type Message interface {
	// Append appends the message as it goes over the wire.
	Append(b []byte) []byte
	header() *Header
}

// The flags of a heartbeat.
const (
	FlagLeave      = 1 << iota // has closed everything and sends nothing more
	FlagGoing                  // gives its share away to leave
	FlagWitness                // votes, never takes a share
	FlagDegraded               // serves worse than others could
	FlagIneligible             // reaches fewer ping nodes than others
	FlagFrames                 // hears frames to the shared MAC
	FlagAside                  // has closed everything and is not to be waited for
)

// An Echo tells a peer that it is heard, and up to which heartbeat.
type Echo struct {
	Node NodeID
	Inc  uint64
	N    uint64
}

// A Heartbeat claims buckets: those that may be open and those wanted.
type Heartbeat struct {
	Header
	N      uint64
	Lease  time.Duration // whole microseconds on the wire
	Shape  uint64        // 0: a witness, which knows none
	Host   uint64        // tells two machines with one name apart
	Epoch  Epoch
	Hash   uint64
	Since  Epoch // when this incarnation was first listed; Issuer is zero
	Seats  uint8 // members of the assignment that it follows
	State  State
	Flags  uint16
	Weight uint16
	Reach  uint8  // ping nodes that answer it
	Freeze uint32 // how often planned moves were frozen and thawed; odd: frozen
	Words  int    // size of the sets in 8-byte words, 1 to 64
	Open   partition.Set
	Want   partition.Set
	Rest   partition.Set
	Name   string
	Voters []NodeID // ascending; none: quorum lan
	Heard  []Echo
}

// Claims returns what the heartbeat claims.
func (h *Heartbeat) Claims() partition.Set { return h.Open.Union(h.Want) }

// An Ack answers one heartbeat of one incarnation.
type Ack struct {
	Header
	To      NodeID
	ToInc   uint64
	N       uint64
	Epoch   Epoch
	Hash    uint64
	Words   int
	Granted partition.Set
	Refused partition.Set
}

// A Fetch asks for the assignment of an epoch seen in a heartbeat or ack.
type Fetch struct {
	Header
	Epoch Epoch
}

// A Seat is one member of an assignment.
type Seat struct {
	Node   NodeID
	Inc    uint64
	Since  Epoch // when this incarnation was first listed; Issuer is zero
	Weight uint16
}

// A Gone is a director that an assignment has no seat for any more.
type Gone struct {
	Node NodeID
	Why  Cause
}

// An Assignment says who shall claim which bucket. It is immutable. One of many
// buckets travels in parts.
type Assignment struct {
	Header
	Epoch   Epoch
	Hash    uint64
	Shape   uint64
	Buckets int // all that the share has
	Seats   []Seat
	Gone    []Gone  // who lost its seat by it, for people
	First   int     // the first bucket of Owner: 0 but in a part
	Owner   []uint8 // index into Seats, per bucket
}

// whole reports whether a is no part.
func (a *Assignment) whole() bool { return len(a.Owner) == a.Buckets }

// A Probe asks To for a Proof. Both are the same in all versions.
type Probe struct {
	Header
	To NodeID
}

// A Proof shows that its sender lives now: ToInc is the incarnation of whoever
// asked, which no recording can name.
type Proof struct {
	Header
	To    NodeID
	ToInc uint64
}

func (h *Header) header() *Header { return h }

func (h *Header) append(b []byte, t Type) []byte {
	b = append(b, byte(t), wireVersion)
	b = binary.BigEndian.AppendUint16(b, h.Share)
	b = binary.BigEndian.AppendUint32(b, h.Cluster)
	b = binary.BigEndian.AppendUint64(b, uint64(h.From))
	return binary.BigEndian.AppendUint64(b, h.Inc)
}

func appendEpoch(b []byte, e Epoch) []byte {
	b = binary.BigEndian.AppendUint32(b, e.Term)
	b = binary.BigEndian.AppendUint32(b, e.Counter)
	return binary.BigEndian.AppendUint64(b, e.Issuer)
}

// Append implements Message.
func (h *Heartbeat) Append(b []byte) []byte {
	b = h.append(b, TypeHeartbeat)
	b = binary.BigEndian.AppendUint64(b, h.N)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Lease.Microseconds()))
	b = binary.BigEndian.AppendUint64(b, h.Shape)
	b = binary.BigEndian.AppendUint64(b, h.Host)
	b = appendEpoch(b, h.Epoch)
	b = binary.BigEndian.AppendUint64(b, h.Hash)
	b = binary.BigEndian.AppendUint32(b, h.Since.Term)
	b = binary.BigEndian.AppendUint32(b, h.Since.Counter)
	b = append(b, byte(h.State), h.Seats)
	b = binary.BigEndian.AppendUint16(b, h.Flags)
	b = binary.BigEndian.AppendUint16(b, h.Weight)
	b = append(b, h.Reach, 0)
	b = binary.BigEndian.AppendUint32(b, h.Freeze)
	b = append(b, byte(h.Words))
	b = appendSet(b, &h.Open, h.Words, 0)
	b = appendSet(b, &h.Want, h.Words, 0)
	b = h.appendRest(b)
	b = append(b, byte(len(h.Name)))
	b = append(b, h.Name...)
	b = append(b, byte(len(h.Voters)))
	for _, v := range h.Voters {
		b = binary.BigEndian.AppendUint64(b, uint64(v))
	}
	b = append(b, byte(len(h.Heard)))
	for _, e := range h.Heard {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Node))
		b = binary.BigEndian.AppendUint64(b, e.Inc)
		b = binary.BigEndian.AppendUint64(b, e.N)
	}
	return b
}

// appendRest appends the set rest, which mostly differs little from open.
func (h *Heartbeat) appendRest(b []byte) []byte {
	diff := h.Rest.Minus(h.Open).Union(h.Open.Minus(h.Rest))
	if setSize(&diff, h.Words) < setSize(&h.Rest, h.Words) {
		return appendSet(b, &diff, h.Words, relative)
	}
	return appendSet(b, &h.Rest, h.Words, 0)
}

// size returns how many bytes Append appends.
func (h *Heartbeat) size() int {
	diff := h.Rest.Minus(h.Open).Union(h.Open.Minus(h.Rest))
	return h.besides() + setSize(&h.Open, h.Words) + setSize(&h.Want, h.Words) + min(setSize(&diff, h.Words), setSize(&h.Rest, h.Words))
}

// besides returns how many bytes it has besides the sets.
func (h *Heartbeat) besides() int {
	return headerSize + heartbeatFixed + 3 + len(h.Name) + 8*len(h.Voters) + 24*len(h.Heard)
}

// fit makes the heartbeat say less where it would not fit: what is open is
// always told, what is wanted or served beside others also later.
func (h *Heartbeat) fit() {
	if h.besides()+3*(1+h.Words*8) <= MaxMessage {
		return
	}
	for h.size() > MaxMessage {
		more := h.Rest.Minus(h.Open)
		switch {
		case !h.Want.Empty():
			h.Want = lowest(&h.Want, h.Want.Len()/2)
		case !more.Empty():
			h.Rest = h.Rest.Intersect(h.Open).Union(lowest(&more, more.Len()/2))
		default:
			h.Rest = partition.Set{}
		}
	}
}

// Append implements Message.
func (a *Ack) Append(b []byte) []byte {
	b = a.append(b, TypeAck)
	b = binary.BigEndian.AppendUint64(b, uint64(a.To))
	b = binary.BigEndian.AppendUint64(b, a.ToInc)
	b = binary.BigEndian.AppendUint64(b, a.N)
	b = appendEpoch(b, a.Epoch)
	b = binary.BigEndian.AppendUint64(b, a.Hash)
	b = append(b, byte(a.Words))
	b = appendSet(b, &a.Granted, a.Words, 0)
	return appendSet(b, &a.Refused, a.Words, 0)
}

// Append implements Message.
func (f *Fetch) Append(b []byte) []byte {
	return appendEpoch(f.append(b, TypeFetch), f.Epoch)
}

// Append implements Message.
func (p *Probe) Append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(p.append(b, TypeProbe), uint64(p.To))
}

// Append implements Message.
func (p *Proof) Append(b []byte) []byte {
	b = p.append(b, TypeProof)
	b = binary.BigEndian.AppendUint64(b, uint64(p.To))
	return binary.BigEndian.AppendUint64(b, p.ToInc)
}

// Append implements Message.
func (a *Assignment) Append(b []byte) []byte {
	b = a.append(b, TypeAssign)
	b = appendEpoch(b, a.Epoch)
	b = binary.BigEndian.AppendUint64(b, a.Hash)
	return a.appendContent(b)
}

func (a *Assignment) appendContent(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, a.Shape)
	b = binary.BigEndian.AppendUint16(b, uint16(a.Buckets))
	b = append(b, byte(len(a.Seats)))
	for _, s := range a.Seats {
		b = binary.BigEndian.AppendUint64(b, uint64(s.Node))
		b = binary.BigEndian.AppendUint64(b, s.Inc)
		b = binary.BigEndian.AppendUint32(b, s.Since.Term)
		b = binary.BigEndian.AppendUint32(b, s.Since.Counter)
		b = binary.BigEndian.AppendUint16(b, s.Weight)
	}
	b = append(b, byte(len(a.Gone)))
	for _, g := range a.Gone {
		b = append(binary.BigEndian.AppendUint64(b, uint64(g.Node)), byte(g.Why))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(a.First))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Owner)))
	for i := 0; i < len(a.Owner); i += 2 {
		b = append(b, a.Owner[i]<<4|a.Owner[i+1])
	}
	return b
}

// contentHash returns the hash that a whole assignment of this content, and
// each part of it, must carry.
func (a *Assignment) contentHash() uint64 {
	sum := sha256.Sum256(a.appendContent(appendEpoch(nil, a.Epoch)))
	return binary.BigEndian.Uint64(sum[:])
}

// A reader takes fields from a message; after the first failure all are zero.
type reader struct {
	b         []byte
	bad       bool // it ended too soon
	malformed bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) epoch() Epoch { return Epoch{r.u32(), r.u32(), r.u64()} }

// words reads the size of the sets that follow.
func (r *reader) words() (int, bool) {
	w := int(r.u8())
	return w, r.bad || w >= 1 && w <= MaxBuckets/64
}

// A Decoder parses messages. What it returns is valid until its next call,
// but for assignments, which are kept. The zero value is ready.
type Decoder struct {
	hb     Heartbeat
	ack    Ack
	fetch  Fetch
	probe  Probe
	proof  Proof
	heard  [MaxNodes]Echo
	voters [MaxNodes]NodeID
	names  map[NodeID]string
}

// Decode parses one message, which is kept by nobody else.
func Decode(b []byte) (Message, error) { return new(Decoder).Decode(b) }

// Decode parses one message. For a message of a version too far from ours it
// returns ErrVersion with a *Fetch that holds only the header.
func (d *Decoder) Decode(b []byte) (Message, error) {
	if len(b) < headerSize {
		return nil, ErrTruncated
	}
	r := reader{b: b[2:]}
	h := Header{Share: r.u16(), Cluster: r.u32(), From: NodeID(r.u64()), Inc: r.u64()}
	switch Type(b[0]) {
	case TypeProbe:
		if d.probe = (Probe{h, NodeID(r.u64())}); r.bad {
			return nil, ErrTruncated
		}
		return &d.probe, nil
	case TypeProof:
		if d.proof = (Proof{h, NodeID(r.u64()), r.u64()}); r.bad {
			return nil, ErrTruncated
		}
		return &d.proof, nil
	}
	if b[1] < oldestVersion || b[1] > newestVersion {
		d.fetch = Fetch{Header: h}
		return &d.fetch, ErrVersion
	}
	var m Message
	ok := false
	switch Type(b[0]) {
	case TypeHeartbeat:
		m, ok = &d.hb, d.heartbeat(h, &r)
	case TypeAck:
		m, ok = &d.ack, d.decodeAck(h, &r)
	case TypeAssign:
		m, ok = decodeAssignment(h, &r)
	case TypeFetch:
		d.fetch = Fetch{h, r.epoch()}
		m, ok = &d.fetch, true
	}
	switch {
	case r.bad:
		return nil, ErrTruncated
	case !ok || r.malformed:
		return nil, ErrMalformed
	}
	return m, nil
}

func (d *Decoder) heartbeat(h Header, r *reader) (ok bool) {
	d.hb = Heartbeat{
		Header: h, N: r.u64(), Lease: time.Duration(r.u32()) * time.Microsecond, Shape: r.u64(), Host: r.u64(),
		Epoch: r.epoch(), Hash: r.u64(), Since: Epoch{Term: r.u32(), Counter: r.u32()},
		State: State(r.u8()), Seats: r.u8(), Flags: r.u16(), Weight: r.u16(), Reach: r.u8(),
	}
	hb := &d.hb
	r.u8() // zero
	hb.Freeze = r.u32()
	if hb.Words, ok = r.words(); !ok || hb.State > Left || hb.Lease > MaxLease {
		return false
	}
	hb.Open = r.set(hb.Words, &partition.Set{})
	hb.Want, hb.Rest = r.set(hb.Words, &hb.Open), r.set(hb.Words, &hb.Open)
	n := int(r.u8())
	if !r.bad && (n < 1 || n > MaxName) {
		return false
	}
	name := r.take(n)
	if r.bad {
		return false
	}
	if hb.Name, ok = d.name(h.From, name); !ok {
		return false
	}
	if n = int(r.u8()); n > MaxNodes {
		return false
	}
	for i := range n {
		d.voters[i] = NodeID(r.u64())
	}
	hb.Voters = d.voters[:n]
	if n = int(r.u8()); n > MaxNodes {
		return false
	}
	for i := range n {
		d.heard[i] = Echo{NodeID(r.u64()), r.u64(), r.u64()}
	}
	hb.Heard = d.heard[:n]
	return true
}

// name returns name as a string, which must be that of id.
func (d *Decoder) name(id NodeID, name []byte) (string, bool) {
	if s, ok := d.names[id]; ok {
		return s, s == string(name)
	}
	s := string(name)
	if ID(s) != id {
		return "", false
	}
	if d.names == nil || len(d.names) >= maxPeers {
		d.names = map[NodeID]string{}
	}
	d.names[id] = s
	return s, true
}

func (d *Decoder) decodeAck(h Header, r *reader) (ok bool) {
	d.ack = Ack{Header: h, To: NodeID(r.u64()), ToInc: r.u64(), N: r.u64(), Epoch: r.epoch(), Hash: r.u64()}
	if d.ack.Words, ok = r.words(); ok {
		d.ack.Granted = r.set(d.ack.Words, &partition.Set{})
		d.ack.Refused = r.set(d.ack.Words, &d.ack.Granted)
	}
	return ok
}

func decodeAssignment(h Header, r *reader) (*Assignment, bool) {
	a := &Assignment{Header: h, Epoch: r.epoch(), Hash: r.u64(), Shape: r.u64()}
	var seats int
	a.Buckets, seats = int(r.u16()), int(r.u8())
	if a.Buckets < 2 || a.Buckets > MaxBuckets || seats < 1 || seats > MaxNodes {
		return nil, false
	}
	for range seats {
		a.Seats = append(a.Seats, Seat{NodeID(r.u64()), r.u64(), Epoch{Term: r.u32(), Counter: r.u32()}, r.u16()})
	}
	gone := int(r.u8())
	if gone > MaxNodes {
		return nil, false
	}
	for range gone {
		a.Gone = append(a.Gone, Gone{NodeID(r.u64()), Cause(r.u8())})
	}
	a.First = int(r.u16())
	owners := int(r.u16())
	if owners < 2 || owners%2 != 0 || owners > partOwners || a.First+owners > a.Buckets {
		return nil, false
	}
	a.Owner = make([]uint8, owners)
	for i, v := range r.take(owners / 2) {
		a.Owner[2*i], a.Owner[2*i+1] = v>>4, v&15
		if int(v>>4) >= seats || int(v&15) >= seats {
			return nil, false
		}
	}
	return a, r.bad || !a.whole() || a.Hash == a.contentHash()
}

// From returns who sent m.
func From(m Message) NodeID { return m.header().From }
