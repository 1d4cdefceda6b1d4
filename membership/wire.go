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

// From returns who sent m.
func From(m Message) NodeID { return m.header().From }
