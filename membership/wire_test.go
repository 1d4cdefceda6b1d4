package membership

import (
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/partition"
)

func samples() map[string]Message {
	h := Header{Share: 1, Cluster: ClusterID("web"), From: ID("d1"), Inc: 0x1122334455667788}
	a := &Assignment{
		Header: h, Epoch: Epoch{2, 3, 4}, Shape: 7, Buckets: 4,
		Seats: []Seat{{ID("d1"), 5, Epoch{Term: 1, Counter: 1}, 100}, {ID("d2"), 6, Epoch{Term: 2, Counter: 3}, 50}},
		Gone:  []Gone{{ID("d3"), Drains}},
		Owner: []uint8{0, 1, 1, 0},
	}
	a.Hash = a.contentHash()
	part := &Assignment{Header: h, Epoch: a.Epoch, Hash: 77, Shape: 7, Buckets: 2048, Seats: a.Seats, First: 1024, Owner: []uint8{1, 0}}
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
		"part":   part,
		"fetch":  &Fetch{Header: h, Epoch: Epoch{2, 3, 4}},
		"probe":  &Probe{Header: h, To: ID("d2")},
		"proof":  &Proof{Header: h, To: ID("d2"), ToInc: 6},
		"many": &Heartbeat{
			Header: h, N: 9, Words: 16, Open: partition.SetOf(0, 100, 1000), Want: partition.SetOf(101), Rest: partition.SetOf(0, 100, 999, 1000),
			Name: "d1", Voters: []NodeID{}, Heard: []Echo{},
		},
	}
}

// The wire format is a promise to nodes of other builds: these bytes change
// only together with wireVersion.
var golden = map[string]string{
	"ack":       "02030001f4edeaf78b53639f152c8fc61122334455667788e788103ee15318fc0000000000000006000000000000000a000000020000000300000000000000040000000000000008010100018002000160",
	"assign":    "03030001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004261c3f39fcb905ff00000000000000070004028b53639f152c8fc6000000000000000500000001000000010064e788103ee15318fc00000000000000060000000200000003003201f451a61749c611ba06000000040110",
	"fetch":     "04030001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004",
	"heartbeat": "01030001f4edeaf78b53639f152c8fc611223344556677880000000000000009000493e00000000000000007000000000000000b00000002000000030000000000000004000000000000000800000001000000020103002100640200000000010102000216010001400600017e026431028b53639f152c8fc660c5590f72eef29201e788103ee15318fc0000000000000006000000000000000a",
	"many":      "01030001f4edeaf78b53639f152c8fc61122334455667788000000000000000900000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000100800030018fa0c060001a5890001bce00264310000",
	"part":      "03030001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004000000000000004d00000000000000070800028b53639f152c8fc6000000000000000500000001000000010064e788103ee15318fc000000000000000600000002000000030032000400000210",
	"probe":     "05030001f4edeaf78b53639f152c8fc61122334455667788e788103ee15318fc",
	"proof":     "06030001f4edeaf78b53639f152c8fc61122334455667788e788103ee15318fc0000000000000006",
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

// versionTwo is what builds of version 2 sent, of the same samples.
var versionTwo = map[string]string{
	"ack":       "02020001f4edeaf78b53639f152c8fc61122334455667788e788103ee15318fc0000000000000006000000000000000a0000000200000003000000000000000400000000000000080104000000000000000800000000000000",
	"assign":    "03020001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004ab2a11ba7cb305e500000000000000070004028b53639f152c8fc6000000000000000500000001000000010064e788103ee15318fc0000000000000006000000020000000300320110",
	"fetch":     "04020001f4edeaf78b53639f152c8fc6112233445566778800000002000000030000000000000004",
	"heartbeat": "01020001f4edeaf78b53639f152c8fc611223344556677880000000000000009000493e00000000000000007000000000000000b000000020000000300000000000000040000000000000008000000010000000201030021006402000000000101010100000000000002000000000000000000000000000080026431028b53639f152c8fc660c5590f72eef29201e788103ee15318fc0000000000000006000000000000000a",
}

// Version 2 had another layout: its messages say that their sender is there,
// who may serve, and are never taken for something else.
func TestVersionTwoIsForeign(t *testing.T) {
	c := New(Config{Node: "d2", Incarnation: 6, Cluster: "web", Share: 1, Shape: 7, Buckets: 64, Lease: simLease, Interval: simInterval, Arm: simArm}, 0)
	c.SetGate(0, true, true)
	var now time.Duration
	for range 100 {
		now += simInterval
		for name, text := range versionTwo {
			b, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Decode(b)
			if !errors.Is(err, ErrVersion) || m.header().From != ID("d1") || m.header().Inc != 0x1122334455667788 {
				t.Fatalf("%s: %+v, %v", name, m, err)
			}
			c.Foreign(now, m)
		}
		c.Tick(now)
		c.Actions()
	}
	s := c.Snapshot(now)
	if s.State != Joining || !strings.Contains(s.Why, "another version") || s.Members[1].State != "foreign" || !strings.Contains(s.Members[1].Why, "another version") || s.Stats.ForeignVersion == 0 {
		t.Errorf("beside version 2 a newcomer is %v because %q, and sees %+v", s.State, s.Why, s.Members[1])
	}
}

// scattered returns n of the buckets that there are, anywhere.
func scattered(r *rand.Rand, n, buckets int) (s partition.Set) {
	for _, b := range r.Perm(buckets)[:n] {
		s.Add(b)
	}
	return s
}

// The largest messages that a Core makes must pass in one frame, whatever the
// sets are. What is open is told whole, and all of the rest but in the worst
// case: with the most nodes, or many small ones.
func TestLargestMessagesFit(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	heartbeat := func(nodes int, open, want, rest partition.Set) *Heartbeat {
		return &Heartbeat{
			Words: MaxBuckets / 64, Name: strings.Repeat("x", MaxName), Heard: make([]Echo, nodes-1), Voters: make([]NodeID, nodes),
			Open: open, Want: want, Rest: rest,
		}
	}
	for _, c := range []struct {
		name              string
		nodes             int
		open, want, extra int // buckets
		whole             bool
	}{
		{"two, one dies", 2, 2048, 2048, 0, true},
		{"four, one dies", 4, 1024, 341, 100, true},
		{"sixteen, one dies", 16, 256, 17, 17, true},
		{"sixteen, fifteen die", 16, 256, 3840, 0, false},
		{"everything everywhere", 16, 2048, 2048, 2048, false},
	} {
		open := scattered(r, c.open, MaxBuckets)
		want := partition.FullSet(MaxBuckets).Minus(open)
		want = lowest(&want, c.want)
		hb := heartbeat(c.nodes, open, want, open.Union(scattered(r, c.extra, MaxBuckets)))
		all := *hb
		hb.fit()
		if n := len(hb.Append(nil)); n > MaxMessage || n != hb.size() {
			t.Errorf("%s: %d bytes, at most %d; size says %d", c.name, n, MaxMessage, hb.size())
		}
		if hb.Open != all.Open || c.whole && (hb.Want != all.Want || hb.Rest != all.Rest) {
			t.Errorf("%s: not all is told", c.name)
		}
		if !c.whole && hb.Want.Empty() && hb.Rest.Len() <= hb.Open.Len() && c.extra > 0 {
			t.Errorf("%s: nothing is told besides what is open", c.name)
		}
	}
	hb := heartbeat(16, scattered(r, 2048, MaxBuckets), partition.Set{}, partition.Set{})
	if hb.fit(); len(hb.Append(nil)) > MaxMessage {
		t.Errorf("a heartbeat without rest is %d bytes", len(hb.Append(nil)))
	}
	ack := &Ack{Words: MaxBuckets / 64, Granted: scattered(r, 2048, MaxBuckets)}
	ack.Refused = partition.FullSet(MaxBuckets).Minus(ack.Granted)
	as := &Assignment{Buckets: MaxBuckets, Seats: make([]Seat, MaxNodes), Gone: make([]Gone, MaxNodes), Owner: make([]uint8, partOwners)}
	for _, m := range []Message{ack, as} {
		if n := len(m.Append(nil)); n > MaxMessage {
			t.Errorf("%T is %d bytes, more than %d", m, n, MaxMessage)
		}
	}
}

func TestSetsOnTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := 1 << rapid.IntRange(0, 6).Draw(t, "log2 words")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		draw := func(what string) partition.Set {
			return scattered(r, rapid.IntRange(0, words*64).Draw(t, what), words*64)
		}
		first, s := draw("first"), draw("set")
		b := appendSet(nil, &s, words, 0)
		if len(b) != setSize(&s, words) || len(b) > 1+words*8 {
			t.Fatalf("%d buckets take %d bytes, of %d at most, and setSize says %d", s.Len(), len(b), 1+words*8, setSize(&s, words))
		}
		rd := reader{b: append(b, "more"...)}
		if back := rd.set(words, &first); back != s || rd.bad || rd.malformed || string(rd.b) != "more" {
			t.Fatalf("%v came back as %v (%v %v), leaving %q", s, back, rd.bad, rd.malformed, rd.b)
		}
		rd = reader{b: appendSet(nil, &s, words, relative)}
		if back := rd.set(words, &first); back != s.Minus(first).Union(first.Minus(s)) {
			t.Fatalf("relative to %v, %v came back as %v", first, s, back)
		}
	})
}

// A share scattered over many buckets takes little more than its entropy.
func TestScatteredSetsAreShort(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 16, 64, 256, 512, 1024, 2048, 4096} {
		s := scattered(r, n, MaxBuckets)
		p := float64(n) / MaxBuckets
		entropy := 0.0
		if p < 1 {
			entropy = -MaxBuckets * (p*math.Log2(p) + (1-p)*math.Log2(1-p)) / 8
		}
		if got := setSize(&s, MaxBuckets/64); float64(got) > entropy*1.1+8 && got > 1+MaxBuckets/8 {
			t.Errorf("%d of %d buckets take %d bytes, their entropy is %.0f", n, MaxBuckets, got, entropy)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		f.Add(m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		// Sets can be written in several ways, so compare what is read.
		again, err := Decode(m.Append(nil))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%x decodes to %+v, and that to %+v, %v", b, m, again, err)
		}
		c := New(Config{Node: "d2", Incarnation: 6, Cluster: "web", Share: 1, Shape: 7, Buckets: 64, Lease: simLease, Interval: simInterval, Arm: simArm}, 0)
		c.SetGate(0, true, true)
		for i := range time.Duration(20) {
			c.Receive(i*simInterval, m)
			c.Tick(i * simInterval)
		}
	})
}
