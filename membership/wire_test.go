package membership

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"saru/partition"
)

func samples() map[string]Message {
	h := Header{Share: 1, Cluster: ClusterID("web"), From: ID("d1"), Inc: 0x1122334455667788}
	a := &Assignment{
		Header: h, Epoch: Epoch{2, 3, 4}, Shape: 7,
		Seats: []Seat{{ID("d1"), 5, Epoch{Term: 1, Counter: 1}, 100}, {ID("d2"), 6, Epoch{Term: 2, Counter: 3}, 50}},
		Owner: []uint8{0, 1, 1, 0},
	}
	a.Hash = a.contentHash()
	return map[string]Message{
		"heartbeat": &Heartbeat{
			Header: h, N: 9, Lease: 300 * time.Millisecond, Shape: 7, Host: 11, Epoch: Epoch{2, 3, 4}, Hash: 8,
			Since: Epoch{Term: 1, Counter: 2}, Seats: 3, State: Ready, Flags: FlagLeave | FlagFrames, Weight: 100, Reach: 2, Freeze: 1,
			Words: 1, Open: partition.SetOf(0, 8), Want: partition.SetOf(1), Rest: partition.SetOf(63), Name: "d1",
			Voters: []NodeID{ID("d1"), ID("w1")}, Heard: []Echo{{ID("d2"), 6, 10}},
		},
		"ack": &Ack{
			Header: h, To: ID("d2"), ToInc: 6, N: 10, Epoch: Epoch{2, 3, 4}, Hash: 8, Words: 1,
			Granted: partition.SetOf(2), Refused: partition.SetOf(3),
		},
		"assign": a,
		"fetch":  &Fetch{Header: h, Epoch: Epoch{2, 3, 4}},
	}
}

// The wire format is a promise to nodes of other builds: these bytes change
// only together with wireVersion.
var golden = map[string]string{
	"ack":       "02020001f4edeaf78b53639f152c8fc61122334455667788e788103ee15318fc0000000000000006000000000000000a0000000200000003000000000000000400000000000000080104000000000000000800000000000000",
	"assign":    "03020001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004ab2a11ba7cb305e500000000000000070004028b53639f152c8fc6000000000000000500000001000000010064e788103ee15318fc0000000000000006000000020000000300320110",
	"fetch":     "04020001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004",
	"heartbeat": "01020001f4edeaf78b53639f152c8fc611223344556677880000000000000009000493e00000000000000007000000000000000b000000020000000300000000000000040000000000000008000000010000000201030021006402000000000101010100000000000002000000000000000000000000000080026431028b53639f152c8fc660c5590f72eef29201e788103ee15318fc0000000000000006000000000000000a",
}

func TestWireGolden(t *testing.T) {
	for name, m := range samples() {
		b := m.Append(nil)
		if got := hex.EncodeToString(b); got != golden[name] {
			t.Errorf("%s is %q on the wire, want %q", name, got, golden[name])
		}
		back, err := Decode(append(b, "a later version's fields"...))
		if err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%s decodes to %+v, %v; want %+v", name, back, err, m)
		}
		for i := range b {
			if _, err := Decode(b[:i]); err == nil {
				t.Errorf("%s cut to %d of %d bytes decodes", name, i, len(b))
			}
		}
	}
}

// The next version is understood, since layouts only grow at their end; of
// others only the sender is.
func TestOtherVersions(t *testing.T) {
	want := samples()["ack"]
	for version, fits := range map[byte]bool{wireVersion - 1: false, wireVersion: true, wireVersion + 1: true, wireVersion + 2: false} {
		b := append(want.Append(nil), "a later version's fields"...)
		b[1] = version
		m, err := Decode(b)
		if fits && (err != nil || !reflect.DeepEqual(m, want)) {
			t.Errorf("version %d: %+v, %v", version, m, err)
		}
		if !fits && (!errors.Is(err, ErrVersion) || m.header().From != ID("d1")) {
			t.Errorf("version %d: %+v, %v", version, m, err)
		}
	}
}

// The largest messages that a Core makes must pass in one frame.
func TestLargestMessagesFit(t *testing.T) {
	hb := &Heartbeat{Words: MaxBuckets / 64, Name: string(bytes.Repeat([]byte("x"), MaxName)), Heard: make([]Echo, MaxNodes-1), Voters: make([]NodeID, MaxNodes)}
	as := &Assignment{Seats: make([]Seat, MaxNodes), Owner: make([]uint8, MaxBuckets)}
	for _, m := range []Message{hb, as} {
		if n := len(m.Append(nil)); n > MaxMessage {
			t.Errorf("%T is %d bytes, more than %d", m, n, MaxMessage)
		}
	}
}

// heartbeatZero is where a heartbeat has a byte that is ignored.
const heartbeatZero = headerSize + 67

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		f.Add(m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, want := m.Append(nil), bytes.Clone(b)
		want[1] = wireVersion
		if Type(b[0]) == TypeHeartbeat {
			want[heartbeatZero] = 0
		}
		if !bytes.HasPrefix(want, again) {
			t.Errorf("%x decodes to %+v, which is %x", b, m, again)
		}
		c := New(Config{Node: "d2", Incarnation: 6, Cluster: "web", Share: 1, Shape: 7, Buckets: 64, Lease: simLease, Interval: simInterval, Arm: simArm}, 0)
		c.SetGate(0, true, true)
		for i := range time.Duration(20) {
			c.Receive(i*simInterval, m)
			c.Tick(i * simInterval)
		}
	})
}
