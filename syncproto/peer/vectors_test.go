package peer

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/vectors"
)

// What docs/protocol.md says of messages.
func TestVectors(t *testing.T) {
	v := vectors.Load(t, "../../docs/protocol.md", vectors.Messages)
	if v.Text("datagram purpose") != purposeDatagram || v.Text("stream purpose") != purposeBulk {
		t.Error("the document has other purposes")
	}
	name := v.Text("name")
	node := conntable.NodeIDOf(name)
	is := func(what string, got []byte) {
		t.Helper()
		if want := v.Bytes(what); !bytes.Equal(got, want) {
			t.Errorf("%s is\n%x, the document says\n%x", what, got, want)
		}
	}

	recs := []conntable.Record{vectorRecord(v, "IPv4", node), vectorRecord(v, "IPv6", node)}
	var b batch
	var d drops
	clock := b.load(recs, protocolVersion, node, &d)
	message, n := b.next((&recordsHead{version: protocolVersion, sequence: 1, clock: clock}).append(nil, node), DefaultDatagram)
	if n != len(recs) {
		t.Errorf("%d of %d records were said", n, len(recs))
	}
	is("records", message)
	if got := vectorDecode(t, v.Bytes("records")); !reflect.DeepEqual(got, recs) {
		t.Errorf("the document's records are\n%+v, not\n%+v", got, recs)
	}

	horizon := v.Number("both horizon")
	is("heartbeat", (&heartbeat{
		incarnation: clock - uint64(time.Minute/time.Microsecond), highest: 1, lowest: 1,
		clock: horizon + uint64(2*time.Second/time.Microsecond), horizon: horizon, digest: v.Hex("both digest"),
		connections: 2, flags: flagSynced, port: 8849, name: name, version: protocolVersion, rate: 2,
	}).append(nil, node))
	is("pull", appendPull(nil, protocolVersion, node, name, nil))
}

func vectorRecord(v *vectors.Vectors, name string, node conntable.NodeID) (r conntable.Record) {
	r.Client, r.Virtual, r.Dest = v.AddrPort(name+" client"), v.AddrPort(name+" virtual"), v.AddrPort(name+" real server")
	r.Protocol, r.State, r.Flags = uint8(v.Number(name+" protocol")), uint16(v.Number(name+" state")), uint32(v.Hex(name+" flags"))
	r.Timeout = time.Duration(v.Number(name+" timeout")) * time.Second
	r.Remaining = r.Timeout
	r.Version = conntable.Version{Clock: v.Number(name + " clock"), Node: node}
	return r
}

// vectorDecode returns the records of a datagram's plaintext.
func vectorDecode(t *testing.T, message []byte) (out []conntable.Record) {
	t.Helper()
	var h head
	c, err := h.parse(message)
	if err != nil || h.typ != typeRecords {
		t.Fatalf("type %d: %v", h.typ, err)
	}
	var rh recordsHead
	if err := rh.parse(&h, &c); err != nil {
		t.Fatal(err)
	}
	m := origin{version: rh.version, clock: rh.clock, sender: h.node, age: rh.age}
	if err := new(decoder).records(c.b, &m, func(r *conntable.Record) { out = append(out, *r) }); err != nil {
		t.Fatal(err)
	}
	return out
}
