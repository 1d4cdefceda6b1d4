package usersync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"saru/conntable"
)

// put is a CONN as the module writes it, for the connection of a Change.
func put(ch *Change, kind Kind, stamp, cookie uint64, flag ...int) []byte {
	return nested(nil, attrConn, func(b []byte) []byte {
		if kind != KindNone {
			b = appendAttr(b, connKind, byte(kind))
		}
		b = appendAttr(b, connStamp, native.AppendUint64(nil, stamp)...)
		b = appendAttr(b, connCookie, native.AppendUint64(nil, cookie)...)
		b = appendState(appendDest(appendKey(b, ch.Connection), ch.Dest), ch)
		for _, f := range flag {
			b = appendAttr(b, f)
		}
		return b
	})
}

func head(cpu uint32, seq, dropped uint64) []byte {
	b := appendU32(nil, attrCPU, cpu)
	b = appendAttr(b, attrSeq, native.AppendUint64(nil, seq)...)
	return appendAttr(b, attrDropped, native.AppendUint64(nil, dropped)...)
}

func sample() *Change {
	packets := uint32(7)
	return &Change{
		Connection: &conntable.Connection{
			Key: conntable.Key{
				Client:   netip.MustParseAddrPort("10.0.0.1:40000"),
				Virtual:  netip.MustParseAddrPort("10.0.0.100:80"),
				Protocol: 6,
			},
			Dest:    netip.MustParseAddrPort("10.0.1.2:8080"),
			State:   1,
			Flags:   0x1_0000,
			FWMark:  3,
			Timeout: 900 * time.Second,
		},
		Remaining: 899 * time.Second,
		Packets:   &packets,
	}
}

// TestGolden: the wire format, byte by byte.
func TestGolden(t *testing.T) {
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the golden bytes are little-endian")
	}
	const golden = "" +
		"0800040001000000" + "0c0005000200000000000000" + "0c0006000000000000000000" +
		"90000280" +
		"0500130001000000" + "0c0014000a00000000000000" + "0c0015000b00000000000000" +
		"0500020006000000" + "080003000a000001" + "060004009c400000" + "080005000a000064" + "0600060000500000" +
		"0800070000000100" + "080008000a000102" + "060009001f900000" + "06000a0001000000" +
		"08000c00a0bb0d00" + "08000b0003000000" + "08000d00b8b70d00" + "08000e0007000000" + "04001200"
	got := append(head(1, 2, 0), put(sample(), KindNew, 10, 11, connBound)...)
	if hex.EncodeToString(got) != golden {
		t.Errorf("encoded\n%x want\n%s", got, golden)
	}
	msg, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	var d decoder
	n := 0
	batch, err := d.events(msg, func(r *Record) {
		n++
		want := Record{
			Connection: *sample().Connection,
			Kind:       KindNew, Stamp: 10, Cookie: 11, Packets: 7,
			Remaining: 899 * time.Second, Bound: true,
		}
		if !reflect.DeepEqual(*r, want) {
			t.Errorf("decoded %+v, want %+v", *r, want)
		}
	})
	if err != nil || n != 1 || batch != (Batch{1, 2, 0}) {
		t.Errorf("%d records, batch %+v, %v", n, batch, err)
	}
}

// TestRoundTrip: what can be asked for can be told.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "size")
		addr := func(name string) netip.AddrPort {
			a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, name))
			return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, name+" port"))
		}
		c := &conntable.Connection{
			Key:     conntable.Key{Client: addr("client"), Virtual: addr("virtual"), Protocol: rapid.Byte().Draw(t, "protocol")},
			Dest:    addr("dest"),
			State:   rapid.Uint16().Draw(t, "state"),
			Flags:   rapid.Uint32().Draw(t, "flags"),
			FWMark:  rapid.Uint32().Draw(t, "mark"),
			Timeout: time.Duration(rapid.IntRange(1, 4_000_000).Draw(t, "timeout")) * time.Second,
		}
		c.Template = c.Flags&conntable.FlagTemplate != 0
		if rapid.Bool().Draw(t, "seq") {
			c.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 4, Delta: 5, Prev: 6}}
		}
		if rapid.Bool().Draw(t, "pe") {
			c.PEName, c.PEData = "sip", rapid.SliceOfN(rapid.Byte(), 1, 255).Draw(t, "pe data")
		}
		packets := rapid.Uint32().Draw(t, "packets")
		ch := &Change{Connection: c, Packets: &packets}
		var d decoder
		r, err := d.conn(put(ch, KindNone, 1, 2))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(r.Connection, *c) || r.Packets != packets {
			t.Errorf("%+v came back as %+v", *c, *r)
		}
	})
}

func TestMalformedEvents(t *testing.T) {
	good := func() []byte { return put(sample(), KindNew, 10, 11) }
	without := func(skip int) []byte {
		_, v, _, _ := nextAttr(good())
		return nested(nil, attrConn, func(b []byte) []byte {
			for len(v) > 0 {
				kind, value, rest, err := nextAttr(v)
				if err != nil {
					t.Fatal(err)
				}
				if kind != skip {
					b = appendAttr(b, kind, value...)
				}
				v = rest
			}
			return b
		})
	}
	with := func(kind int, value ...byte) []byte {
		return AppendNested(good(), appendAttr(nil, kind, value...))
	}
	for name, body := range map[string][]byte{
		"no head":                 {},
		"cut":                     good()[:60],
		"no kind":                 append(head(0, 1, 0), put(sample(), KindNone, 1, 1)...),
		"no stamp":                append(head(0, 1, 0), without(connStamp)...),
		"no client":               append(head(0, 1, 0), without(connCAddr)...),
		"no state":                append(head(0, 1, 0), without(connState)...),
		"short port":              append(head(0, 1, 0), with(connCPort, 1)...),
		"long address":            append(head(0, 1, 0), with(connDAddr, 1, 2, 3, 4, 5)...),
		"families differ":         append(head(0, 1, 0), with(connCAddr, make([]byte, 16)...)...),
		"name without end":        append(head(0, 1, 0), with(connPEName, 's', 'i')...),
		"name without data":       append(head(0, 1, 0), with(connPEName, 's', 0)...),
		"flag with data":          append(head(0, 1, 0), with(connBound, 1)...),
		"attribute beyond":        append(head(0, 1, 0), 0xff, 0xff, 2, 0x80),
		"attribute without space": append(head(0, 1, 0), 1, 0, 2, 0x80),
	} {
		var d decoder
		if _, err := d.events(body, func(*Record) {}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A newer module's attributes are skipped.
	var d decoder
	n := 0
	if _, err := d.events(append(head(0, 1, 0), with(200, 1, 2, 3)...), func(*Record) { n++ }); err != nil || n != 1 {
		t.Errorf("unknown attribute: %d records, %v", n, err)
	}
}

// message is a netlink message.
func message(kind uint16, cmd uint8, attrs []byte) []byte {
	b := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+genlHeader+len(attrs)))
	b = native.AppendUint16(b, kind)
	b = append(b, make([]byte, 10)...)
	b = append(b, cmd, Version, 0, 0)
	return append(b, attrs...)
}

// TestLost: each way in which events are lost is told, and nothing else.
func TestLost(t *testing.T) {
	events, lost := 0, 0
	l := &Listener{
		family:  family{id: 40},
		streams: map[uint32]stream{},
		handler: Handler{
			Event: func(*Record) { events++ },
			Lost:  func(err error) { t.Log(err); lost++ },
		},
	}
	one := put(sample(), KindNew, 10, 11)
	for i, step := range []struct {
		msg          []byte
		events, lost int
	}{
		{message(40, cmdEvents, append(head(0, 5, 0), one...)), 1, 0},
		{message(40, cmdEvents, append(head(0, 6, 0), one...)), 1, 0},
		{message(40, cmdEvents, append(head(1, 1, 0), one...)), 1, 0}, // another CPU
		{message(41, cmdEvents, append(head(0, 9, 0), one...)), 0, 0}, // another family
		{message(40, cmdEvents, append(head(0, 8, 0), one...)), 1, 1}, // 7 is missing
		{message(40, cmdEvents, head(0, 9, 3)), 0, 1},                 // three dropped
		{message(40, cmdEvents, append(head(0, 10, 3), one...)), 1, 0},
		{message(40, cmdEvents, append(head(2, 1, 9), one...)), 1, 1},                   // dropped, perhaps before us
		{message(40, cmdEvents, one), 1, 1},                                             // no head
		{append(message(40, cmdEvents, head(0, 11, 3)), 1, 2, 3), 0, 1},                 // rubbish behind
		{message(ctrlID, ctrlDelFamily, appendU16(nil, ctrlAttrFamilyID, 41)), 0, 0},    // another's end
		{message(ctrlID, 1 /* new */, appendU16(nil, ctrlAttrFamilyID, 40)), 0, 0},      // not the end
		{message(40, cmdEvents, append(append(head(0, 12, 3), one...), one...)), 2, 0},  // two at once
		{append(message(40, cmdEvents, head(0, 13, 3)), message(40, 99, nil)...), 0, 0}, // unknown command
	} {
		events, lost = 0, 0
		if err := l.messages(step.msg); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		if events != step.events || lost != step.lost {
			t.Errorf("step %d: %d events, %d losses, want %d and %d", i, events, lost, step.events, step.lost)
		}
	}
	err := l.messages(message(ctrlID, ctrlDelFamily, appendU16(nil, ctrlAttrFamilyID, 40)))
	if !errors.Is(err, ErrNotLoaded) {
		t.Errorf("the family's end: %v", err)
	}
}

func TestResults(t *testing.T) {
	busy := unix.EBUSY
	var v []byte
	for _, r := range []int32{3, 2, 0, -int32(busy)} {
		v = native.AppendUint32(v, uint32(r))
	}
	got, n, err := appendResults(nil, appendAttr(nil, attrResults, v...))
	if err != nil || n != 4 {
		t.Fatalf("%d results, %v", n, err)
	}
	for i, want := range []string{"true true <nil>", "false true <nil>", "false false <nil>", "false false " + busy.Error()} {
		if s := fmt.Sprint(got[i].Created(), got[i].Bound(), got[i].Err()); s != want {
			t.Errorf("result %d: %s, want %s", i, s, want)
		}
	}
	if _, _, err := appendResults(nil, appendAttr(nil, attrResults, 1, 2, 3)); !errors.Is(err, ErrMalformed) {
		t.Errorf("three bytes: %v", err)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(append(head(0, 1, 0), put(sample(), KindNew, 10, 11, connBound)...))
	six := sample()
	six.Client = netip.MustParseAddrPort("[2001:db8::1]:1")
	six.Virtual = netip.MustParseAddrPort("[2001:db8::2]:2")
	six.Seq = &conntable.SeqPair{}
	six.PEName, six.PEData = "sip", []byte("call")
	f.Add(append(head(0, 1, 0), put(six, KindExpired, 10, 11, connCommanded)...))
	f.Add([]byte{4, 0, 2, 0x80})
	f.Fuzz(func(t *testing.T, msg []byte) {
		var d decoder
		_, err := d.events(msg, func(r *Record) {
			if !r.Client.IsValid() || !r.Virtual.IsValid() || !r.Dest.IsValid() || r.Timeout < time.Second ||
				r.Kind == KindNone || len(r.PEData) > maxPEData || len(r.PEName) > maxPEName {
				t.Errorf("%+v", *r)
			}
		})
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%v", err)
		}
		d.conn(msg)
		var st Stats
		_ = st.decode(msg)
		_, _, _ = appendResults(nil, msg)
		l := Listener{streams: map[uint32]stream{}, handler: Handler{Event: func(*Record) {}, Lost: func(error) {}}}
		_ = l.messages(msg)
		if h, body, _, err := nextMessage(msg); err == nil {
			_ = status(h, body)
		}
	})
}

// BenchmarkEvents: a full message of IPv4 events; no allocation.
func BenchmarkEvents(b *testing.B) {
	msg := head(0, 1, 0)
	one := put(sample(), KindState, 10, 11, connBound)
	n := 0
	for ; len(msg)+len(one) < 7600; n++ {
		msg = append(msg, one...)
	}
	var d decoder
	count := 0
	fn := func(*Record) { count++ }
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.events(msg, fn); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(count), "ns/event")
}

func TestPresent(t *testing.T) {
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	came, went := controlMessage(true, "IPVS_SYNC"), controlMessage(false, "IPVS_SYNC")
	for _, c := range []struct {
		name string
		b    []byte
		was  bool
		want bool
	}{
		{"came", came, false, true},
		{"went", went, true, false},
		{"came and went", join(came, went), false, false},
		{"went and came", join(went, came), true, true},
		{"another family", controlMessage(true, "IPVS"), false, false},
		{"another went", controlMessage(false, "IPVS_SYNC2"), true, true},
		{"cut", came[:len(came)-3], false, false},
		{"nothing", nil, true, true},
	} {
		if got := present(c.b, c.was); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// controlMessage is what the controller says when a family came or went.
func controlMessage(came bool, name string) []byte {
	cmd := byte(ctrlDelFamily)
	if came {
		cmd = ctrlNewFamily
	}
	attrs := appendU16(nil, ctrlAttrFamilyID, 30)
	attrs = appendAttr(attrs, ctrlAttrFamilyName, append([]byte(name), 0)...)
	const head = 16
	b := native.AppendUint32(nil, uint32(head+genlHeader+len(attrs)))
	b = native.AppendUint16(b, ctrlID)
	b = append(b, make([]byte, head-len(b))...)
	return append(append(b, cmd, 2, 0, 0), attrs...)
}
