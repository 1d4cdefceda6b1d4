package peer

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/conntable"
	"saru/internal/seal"
	"saru/internal/vectors"
	"saru/syncproto/peer/peertest"
)

const self = conntable.NodeID(0x01020304)

func conn(client string, state uint16) conntable.Record {
	return conntable.Record{
		Connection: conntable.Connection{
			Key: conntable.Key{
				Client: netip.MustParseAddrPort(client), Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: 6,
			},
			Dest: netip.MustParseAddrPort("192.168.6.10:8080"), State: state, Flags: conntable.FlagFwdGate, Timeout: 900 * time.Second,
		},
		Version: conntable.Version{Clock: 1_000_000, Node: self}, Remaining: 900 * time.Second,
	}
}

// encode returns the body of a message of recs, and its clock.
func encode(t testing.TB, version uint8, recs ...conntable.Record) ([]byte, uint64) {
	t.Helper()
	var b batch
	var d drops
	clock := b.load(recs, version, self, &d)
	out, n := b.next(nil, 1<<16)
	if n != len(recs) {
		t.Fatalf("encoded %d of %d records", n, len(recs))
	}
	return out, clock
}

func body(t testing.TB, version uint8, recs ...conntable.Record) []byte {
	t.Helper()
	b, _ := encode(t, version, recs...)
	return b
}

func decode(t testing.TB, b []byte, m origin) []conntable.Record {
	t.Helper()
	m.sender = self
	var out []conntable.Record
	if err := new(decoder).records(b, &m, func(r *conntable.Record) { out = append(out, *r) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGoldenGroups(t *testing.T) {
	three := []conntable.Record{conn("10.1.0.1:40000", 1), conn("10.1.0.2:40001", 1), conn("10.1.0.3:40002", 1)}
	three[2].Dest = netip.MustParseAddrPort("192.168.6.11:8081")
	two := []conntable.Record{conn("10.1.0.1:40000", 1), conn("10.1.0.2:40001", 1)}
	two[1].Version.Clock += 100
	closing := conn("10.1.0.4:40003", 4)
	closing.Timeout, closing.Remaining, closing.Virtual = 120*time.Second, 120*time.Second, netip.MustParseAddrPort("10.9.1.100:443")
	closing.Dest = netip.MustParseAddrPort("192.168.7.10:443")
	closing.Version.Clock -= 50
	full := conn("10.1.0.3:0", 1)
	full.Template, full.Flags, full.FWMark = true, full.Flags|conntable.FlagTemplate, 5
	full.Remaining, full.Version.Node = 60*time.Second, 9
	full.PEName, full.PEData = "sip", []byte("id")
	full.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 4, Delta: 5, Prev: 6}}
	mixed := conn("10.1.0.5:40004", 1)
	mixed.Dest = netip.MustParseAddrPort("[2001:db8::a]:80")
	six := conn("[2001:db8::1]:40000", 4)
	six.Virtual, six.Dest = netip.MustParseAddrPort("[2001:db8::100]:80"), netip.MustParseAddrPort("[2001:db8::a]:80")
	six.Timeout, six.Remaining, six.Deleted = 120*time.Second, 120*time.Second, true

	groups := vectors.Load(t, "../../docs/protocol.md", vectors.Groups)
	for name, got := range map[string][]byte{
		"four records":       body(t, 2, append(three, closing)...),
		"all that there is":  body(t, 2, full),
		"other family":       body(t, 2, mixed),
		"version 1 records":  body(t, 1, two...),
		"version 1 template": body(t, 1, full),
		"version 1 gone":     body(t, 1, six),
	} {
		if want := groups.Bytes(name); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	if got := decode(t, body(t, 2, mixed, three[0]), origin{version: 2, clock: 1_000_000}); !reflect.DeepEqual(got, []conntable.Record{three[0], mixed}) {
		t.Errorf("decoded %+v", got)
	}
	for version := uint8(oldestVersion); version <= protocolVersion; version++ {
		b, clock := encode(t, version, full)
		if got := decode(t, b, origin{version: version, clock: clock}); !reflect.DeepEqual(got, []conntable.Record{full}) {
			t.Errorf("version %d: decoded %+v\nwant %+v", version, got, full)
		}
	}
}

func TestGoldenMessages(t *testing.T) {
	v := vectors.Load(t, "../../docs/protocol.md", vectors.Others)
	boot := seal.Boot{1, 2, 3, 4, 5, 6, 7, 8}
	items := []ServiceItem{ // in another order than the digest's
		{v.Text("services' second name"), v.Text("services' second value")},
		{v.Text("services' first name"), v.Text("services' first value")},
	}
	for name, got := range map[string][]byte{
		"records head":           (&recordsHead{version: 2, sequence: 300, clock: 1_000_100, age: 33 * time.Millisecond}).append(nil, self),
		"version 1 records head": (&recordsHead{version: 1, sequence: 7, clock: 1_000_100, age: 33 * time.Millisecond}).append(nil, self),
		"answering heartbeat": (&heartbeat{
			incarnation: 1, highest: 9, lowest: 2, clock: 3, horizon: 4, digest: 5,
			connections: 6, flags: flagSynced, port: 8849, name: "d1", version: 2, streams: 3, rate: 100_000,
			ask: 7, answers: []answer{{9, 8}}, paths: []path{{8, 1472, true}},
		}).append(nil, self),
		"missing":  (&missing{boot: boot, ranges: []span{{3, 3}, {5, 9}}}).append(nil, self),
		"ask":      appendReceipt(nil, typeAsk, self, boot, 9),
		"receipt":  appendReceipt(nil, typeReceipt, self, boot, 9),
		"services": appendServices(nil, self, newServiceList(items).digest),
	} {
		if want := v.Bytes(name); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
}

// The document's answer to a pull is read to its end.
func TestGoldenPull(t *testing.T) {
	v := vectors.Load(t, "../../docs/protocol.md", vectors.Pull)
	frames := [][]byte{v.Bytes("begin"), append(v.Bytes("bulk head"), v.Bytes("four records")...), v.Bytes("mark"), v.Bytes("end")}
	if got := appendBegin(nil, self, 300, 1_000_000, 4); !bytes.Equal(got, frames[0]) {
		t.Errorf("begin is %x, the document says %x", got, frames[0])
	}
	if got := appendEnd(nil, self, 4); !bytes.Equal(got, frames[3]) {
		t.Errorf("end is %x, the document says %x", got, frames[3])
	}
	s, got := session(t, keys(t, keyA), "d1", peertest.New(1).Node(1))
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() {
		st, err := seal.Server(b, s.keys.Load(), purposeBulk)
		for _, frame := range frames {
			if err == nil {
				err = st.Write(frame)
			}
		}
	}()
	st, err := seal.Client(a, s.keys.Load(), purposeBulk)
	if err != nil {
		t.Fatal(err)
	}
	var state pullState
	r := bulkReader{s: s, t: pullTarget{peer: &peerState{}}, st: &state, merge: deliveries{deliver: s.cfg.Deliver}}
	if err := r.read(st); err != nil {
		t.Fatal(err)
	}
	mark := frames[2][8:]
	if len(*got) != 4 || state.highest != 300 || state.total != 4 || state.marked != 4 || !bytes.Equal(state.mark, mark) {
		t.Errorf("read %+v, %d records; want 4 and the mark %x", state, len(*got), mark)
	}
}

func drawRecord(t *rapid.T) conntable.Record {
	v6 := rapid.Bool().Draw(t, "v6")
	addr := func(name string, v6 bool) netip.AddrPort {
		port := rapid.Uint16().Draw(t, name+" port")
		if v6 {
			a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
			return netip.AddrPortFrom(a, port)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.ByteMax(2), 4, 4).Draw(t, name))), port)
	}
	r := conntable.Record{
		Connection: conntable.Connection{
			Key:  conntable.Key{Client: addr("client", v6), Virtual: addr("virtual", v6), Protocol: rapid.Byte().Draw(t, "protocol")},
			Dest: addr("dest", v6 != rapid.Bool().Draw(t, "mixed")), State: uint16(rapid.Byte().Draw(t, "state")),
			Flags: rapid.Uint32().Draw(t, "flags") & conntable.FlagBackupMask, FWMark: rapid.Uint32().Draw(t, "fwmark"),
			Timeout: time.Duration(rapid.Uint32Range(1, 1<<20).Draw(t, "timeout")) * time.Second,
		},
		Version: conntable.Version{Clock: rapid.Uint64Range(0, 1<<50).Draw(t, "clock"), Node: conntable.NodeID(rapid.Uint32().Draw(t, "node"))},
		Deleted: rapid.Bool().Draw(t, "deleted"),
	}
	r.Template = r.Flags&conntable.FlagTemplate != 0
	r.Remaining = min(r.Timeout, time.Duration(rapid.Uint32Range(0, 1<<20).Draw(t, "remaining"))*time.Second)
	if rapid.Bool().Draw(t, "pe") {
		r.PEName, r.PEData = "sip", rapid.SliceOfN(rapid.Byte(), 1, 255).Draw(t, "data")
	}
	if rapid.Bool().Draw(t, "seq") {
		r.Seq = &conntable.SeqPair{In: conntable.Seq{Init: rapid.Uint32().Draw(t, "init")}}
	}
	return r
}

func TestRecordsComeBackInAnyBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		recs := rapid.SliceOfN(rapid.Custom(drawRecord), 1, 40).Draw(t, "records")
		limit := rapid.IntRange(500, 2000).Draw(t, "limit")
		version := rapid.Uint8Range(oldestVersion, protocolVersion).Draw(t, "version")
		for i := range recs {
			if r := &recs[i]; version == 1 && isMixed(r) {
				r.Dest = r.Virtual
			}
		}
		var b batch
		var d drops
		m := origin{version: version, sender: self, clock: b.load(recs, version, self, &d)}
		want, got := map[int]bool{}, 0
		for {
			body, n := b.next(nil, limit)
			if n == 0 {
				break
			}
			if len(body) > limit {
				t.Fatalf("a body of %d bytes, limit %d", len(body), limit)
			}
			err := new(decoder).records(body, &m, func(r *conntable.Record) {
				for i := range recs {
					if !want[i] && reflect.DeepEqual(*r, recs[i]) {
						want[i] = true
						got++
						return
					}
				}
				t.Fatalf("came back as %+v", *r)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if got != len(recs) {
			t.Fatalf("%d of %d came back; %d cannot be said", got, len(recs), d[DropUnsayable].Load())
		}
	})
}

func TestWhatCannotBeSaid(t *testing.T) {
	mixed, two := conn("10.1.0.1:40000", 1), conn("10.1.0.1:40000", 1)
	mixed.Dest = netip.MustParseAddrPort("[2001:db8::1]:80")
	two.Virtual = netip.MustParseAddrPort("[2001:db8::1]:80")
	recs := []conntable.Record{two, mixed, conn("10.1.0.1:40000", 256), {}, conn("10.1.0.1:1", 1)}
	for version := uint8(oldestVersion); version <= protocolVersion; version++ {
		var b batch
		var d drops
		b.load(slices.Clone(recs), version, self, &d)
		if _, n := b.next(nil, 1400); n != int(version) || d[DropUnsayable].Load() != uint64(5-n) {
			t.Errorf("version %d: said %d, counted %d; want %d and %d", version, n, d[DropUnsayable].Load(), version, 5-version)
		}
	}
}

func TestAgeShortensWhatRemains(t *testing.T) {
	for version := uint8(oldestVersion); version <= protocolVersion; version++ {
		b, clock := encode(t, version, conn("10.1.0.1:40000", 1))
		if got := decode(t, b, origin{version: version, clock: clock, age: 3 * time.Second})[0].Remaining; got != 897*time.Second {
			t.Errorf("version %d: remaining %v, want 897 s", version, got)
		}
	}
}

func TestGapsAgainstASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g gaps
		begin := rapid.Uint64Range(0, 5).Draw(t, "begin")
		g.begin(begin)
		have, top := map[uint64]bool{}, begin
		t.Repeat(map[string]func(*rapid.T){
			"heard": func(t *rapid.T) {
				seq := rapid.Uint64Range(begin+1, begin+60).Draw(t, "seq")
				wanted, lost := g.heard(seq)
				if wanted == have[seq] {
					t.Fatalf("heard %d: wanted %v, had %v", seq, wanted, have[seq])
				}
				if wantLost := max(seq, top+1) - top - 1; lost != wantLost {
					t.Fatalf("heard %d after %d: lost %d, want %d", seq, top, lost, wantLost)
				}
				have[seq] = true
				top = max(top, seq)
			},
			"told": func(t *rapid.T) {
				seq := rapid.Uint64Range(begin, begin+60).Draw(t, "seq")
				if lost, want := g.told(seq), max(seq, top)-top; lost != want {
					t.Fatalf("told %d after %d: lost %d, want %d", seq, top, lost, want)
				}
				top = max(top, seq)
			},
			"forget": func(t *rapid.T) {
				seq := rapid.Uint64Range(begin, begin+60).Draw(t, "seq")
				g.forget(seq)
				for s := begin + 1; s <= seq; s++ {
					have[s] = true
				}
				top = max(top, seq)
			},
			"": func(t *rapid.T) {
				missing := map[uint64]bool{}
				last := uint64(0)
				for _, s := range g.spans {
					if s.from > s.to || s.from <= last || s.to >= g.next {
						t.Fatalf("spans %v below %d", g.spans, g.next)
					}
					last = s.to
					for q := s.from; q <= s.to; q++ {
						missing[q] = true
					}
				}
				for q := begin + 1; q <= top; q++ {
					if missing[q] == have[q] {
						t.Fatalf("%d: missing %v, have %v", q, missing[q], have[q])
					}
				}
			},
		})
	})
}

func TestRingKeepsTheLast(t *testing.T) {
	var r ring
	for i := range uint64(ringSize + 10) {
		r.store(append(r.slot(), byte(i+1)), time.Time{})
	}
	_ = append(r.slot(), 0) // of which nothing comes
	if _, ok := r.get(11); ok || r.lowest() != 12 {
		t.Errorf("lowest %d, and 11 is there: %v", r.lowest(), ok)
	}
	if k, ok := r.get(12); !ok || k.message[0] != 12 {
		t.Errorf("12: %v %v", k, ok)
	}
	if _, ok := r.get(ringSize + 11); ok {
		t.Error("what was not sent is there")
	}
}

func FuzzRecords(f *testing.F) {
	for version := uint8(oldestVersion); version <= protocolVersion; version++ {
		b, clock := encode(f, version, conn("10.1.0.1:40000", 1), conn("10.1.0.2:40001", 4))
		f.Add(b, clock, version)
	}
	f.Add([]byte{1, 0xff}, uint64(0), uint8(1))
	f.Add([]byte{0xff, 0xff, 0xff}, uint64(0), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, clock uint64, version uint8) {
		m := origin{version: oldestVersion + version%2, clock: clock % conntable.MaxClock, sender: self}
		var recs []conntable.Record
		new(decoder).records(b, &m, func(r *conntable.Record) {
			if r.Remaining > r.Timeout || r.Remaining < 0 || r.Version.Clock > conntable.MaxClock {
				t.Fatalf("delivered %+v", *r)
			}
			recs = append(recs, *r)
		})
		// What decodes can be said again, and means the same.
		if len(recs) == 0 {
			return
		}
		var enc batch
		var d drops
		m = origin{version: protocolVersion, clock: enc.load(recs, protocolVersion, self, &d), sender: self}
		body, n := enc.next(nil, 1<<24)
		again := 0
		if err := new(decoder).records(body, &m, func(*conntable.Record) { again++ }); err != nil || again != n || n != len(recs) {
			t.Fatalf("%d of %d again: %v", again, len(recs), err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add((&heartbeat{incarnation: 1, highest: 9, lowest: 2, clock: 3, port: 8849, name: "d1"}).append(nil, self))
	f.Add((&missing{ranges: []span{{1, 2}}}).append(nil, self))
	f.Add(appendReceipt(nil, typeAsk, self, seal.Boot{1}, 7))
	f.Add(appendReceipt(nil, typeReceipt, self, seal.Boot{1}, 7))
	f.Add((&recordsHead{version: 1, sequence: 7}).append(nil, self))
	f.Add((&recordsHead{version: 2, sequence: 7}).append(nil, self))
	f.Add(appendPull(nil, 2, self, "d1", nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m head
		rest, err := m.parse(b)
		if err != nil {
			return
		}
		var again []byte
		node := m.node
		switch m.typ {
		case typeRecords:
			var h recordsHead
			if h.parse(&m, &rest) == nil {
				again = h.append(nil, node)
			}
		case typeHeartbeat:
			var h heartbeat
			if name, err := h.parse(&rest); err == nil {
				h.name = string(name)
				again = h.append(nil, node)
				again = again[:len(again)-16-12*len(h.answers)] // what version 1 has not
			}
		case typeMissing:
			var n missing
			if n.parse(&rest) == nil {
				again = n.append(nil, node)
				copy(again[headSize+10:], b[headSize+10:headSize+12]) // reserved
			}
		case typeAsk, typeReceipt:
			if boot, sequence, err := parseReceipt(&rest); err == nil {
				again = appendReceipt(nil, m.typ, node, boot, sequence)
			}
		case typePull:
			if name := parseName(&rest); !rest.bad {
				again = appendPull(nil, m.version, node, string(name), nil)
			}
		}
		if again != nil {
			copy(again[:4], b[:4]) // version, reserved or age
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("%x\nsays again as %x", b, again)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	recs := make([]conntable.Record, 1000)
	for i := range recs {
		recs[i] = conn("10.1.0.1:40000", 1)
		recs[i].Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 40000)
		recs[i].Dest = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 6, byte(i % 10)}), 80)
	}
	var enc batch
	var d drops
	buf := make([]byte, 0, 1500)
	bytesOut := 0
	b.ReportAllocs()
	for b.Loop() {
		enc.load(recs, protocolVersion, self, &d)
		for {
			body, n := enc.next(buf[:0], 1400)
			if n == 0 {
				break
			}
			bytesOut += len(body)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/record")
	b.ReportMetric(float64(bytesOut)/float64(b.N)/float64(len(recs)), "B/record")
}

func BenchmarkDecode(b *testing.B) {
	var recs []conntable.Record
	for i := range 100 {
		recs = append(recs, conn("10.1.0.1:40000", 1))
		recs[i].Client = netip.AddrPortFrom(recs[i].Client.Addr(), uint16(i))
	}
	body, _ := encode(b, protocolVersion, recs...)
	tab := conntable.New(1000)
	m := origin{version: protocolVersion, clock: 2_000_000, sender: self}
	var d decoder
	b.ReportAllocs()
	for b.Loop() {
		m.clock++
		d.records(body, &m, func(r *conntable.Record) { tab.Apply(r, conntable.ToKernel) })
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/record")
}

// Whatever asks for a repair, only slices that really differ are sent.
func FuzzRepair(f *testing.F) {
	kr := keys(f, keyA)
	s, _ := session(f, kr, "d1", peertest.New(1).Node(1))
	var own conntable.Digests
	own[7] = 1
	s.ownSlices.set(1<<40, &own)
	request := func(horizon uint64, d *conntable.Digests) []byte {
		return appendRepair(nil, protocolVersion, self, "d2", horizon, d)[headSize+3:]
	}
	f.Add(request(1<<40, &own))
	f.Add(request(1<<40, &conntable.Digests{}))
	f.Add(request(1<<41, &own))
	f.Add(request(0, &own))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		diff, err := s.parseRepair(&cursor{b: b})
		switch {
		case err != nil && diff != nil:
			t.Errorf("slices %v with error %v", diff, err)
		case err == nil && len(b) < 8+8*conntable.SliceCount:
			t.Errorf("%d bytes were taken for a repair", len(b))
		case err == nil && binary.BigEndian.Uint64(b) != 1<<40:
			t.Error("a horizon was answered of which there are no digests")
		}
	})
}
