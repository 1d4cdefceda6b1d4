package membership

import (
	"encoding/binary"
	"time"

	"saru/partition"
)

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

func (r *reader) u8() uint8 { return r.take(1)[0] }

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
