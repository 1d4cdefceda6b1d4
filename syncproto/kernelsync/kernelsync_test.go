package kernelsync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"saru/conntable"
)

func tcp4() conntable.Connection {
	c := conntable.Connection{
		Dest:    netip.MustParseAddrPort("192.168.6.5:8080"),
		State:   1,
		Flags:   conntable.FlagFwdGate,
		FWMark:  7,
		Timeout: 900 * time.Second,
	}
	c.Client = netip.MustParseAddrPort("10.9.0.50:40001")
	c.Virtual = netip.MustParseAddrPort("10.9.0.100:80")
	c.Protocol = ProtoTCP
	return c
}

func tcp6() conntable.Connection {
	c := tcp4()
	c.Client = netip.MustParseAddrPort("[2001:db8::1]:40001")
	c.Virtual = netip.MustParseAddrPort("[2001:db8::100]:80")
	c.Dest = netip.MustParseAddrPort("[2001:db8::5]:8080")
	return c
}

const (
	rec4 = "00060024" + "00000003" + "0001" + "9c41" + "0050" + "1f90" + "00000007" + "00000384" + "0a090032" + "0a090064" + "c0a80605"
	rec6 = "01060048" + "00000003" + "0001" + "9c41" + "0050" + "1f90" + "00000007" + "00000384" +
		"20010db8000000000000000000000001" + "20010db8000000000000000000000100" + "20010db8000000000000000000000005"
	message0 = "01" + "07" + "001c" + "0006" + "9c41" + "0050" + "1f90" + "0a090032" + "0a090064" + "c0a80605" + "0003" + "0001"
)

func clone(c *conntable.Connection) conntable.Connection {
	d := *c
	if c.Seq != nil {
		s := *c.Seq
		d.Seq = &s
	}
	d.PEData = bytes.Clone(c.PEData)
	return d
}

func decodeAll(t testing.TB, d *Decoder, msg []byte) ([]conntable.Connection, error) {
	t.Helper()
	var got []conntable.Connection
	err := d.Decode(msg, func(c *conntable.Connection) { got = append(got, clone(c)) })
	return got, err
}

func TestGolden(t *testing.T) {
	withOptions := tcp4()
	withOptions.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 4, Delta: 5, Prev: 6}}
	withOptions.PEName, withOptions.PEData = "sip", []byte("abc")
	options := "0118" + "000000010000000200000003000000040000000500000006" + "0203616263" + "0303736970"
	recOptions := strings.Replace(rec4, "00060024", "00060048", 1) + options
	for _, tt := range []struct {
		name  string
		conns []conntable.Connection
		want  string
	}{
		{"no records", nil, "0051000800010000"},
		{"IPv4", []conntable.Connection{tcp4()}, "0051002c01010000" + rec4},
		{"IPv6", []conntable.Connection{tcp6()}, "0051005001010000" + rec6},
		{"two", []conntable.Connection{tcp4(), tcp6()}, "0051007402010000" + rec4 + rec6},
		{"options", []conntable.Connection{withOptions}, "0051005001010000" + recOptions},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg, n, err := AppendMessage(nil, 0x51, 1472, tt.conns)
			if err != nil || n != len(tt.conns) {
				t.Fatalf("encoded %d of %d: %v", n, len(tt.conns), err)
			}
			if got := hex.EncodeToString(msg); got != tt.want {
				t.Errorf("encoded\n got %s\nwant %s", got, tt.want)
			}
			got, err := decodeAll(t, &Decoder{SyncID: 0x51}, msg)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.conns) {
				t.Errorf("decoded\n got %+v\nwant %+v", got, tt.conns)
			}
		})
	}
}

// TestPadding: the gap before the second record is filled with zeros, and the
// last record has none after it.
func TestPadding(t *testing.T) {
	a, b := tcp4(), tcp4()
	a.PEName, b.PEName = "sip", "sip"
	msg, _, err := AppendMessage(nil, 1, 1472, []conntable.Connection{a, b})
	if err != nil {
		t.Fatal(err)
	}
	if want := HeaderSize + 44 + 41; len(msg) != want {
		t.Errorf("message has %d bytes, want %d", len(msg), want)
	}
	if pad := msg[HeaderSize+41 : HeaderSize+44]; !bytes.Equal(pad, []byte{0, 0, 0}) {
		t.Errorf("padding %x", pad)
	}
}

// TestDrops: what is dropped, and how far, is what the kernel drops
// (ip_vs_process_message and below).
func TestDrops(t *testing.T) {
	good := rec4
	edit := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for _, tt := range []struct {
		name    string
		msg     string // without the header; the header is made
		err     error
		records int
		count   func(*Counts) uint64
	}{
		{"good", good, nil, 1, nil},
		{"unknown type", edit("0006", "0206") + good, ErrType, 0, func(c *Counts) uint64 { return c.Type }},
		{"type with more bits and IPv6", strings.Replace(rec6, "0106", "0306", 1), nil, 1, nil},
		{"newer version ends the message", edit("00060024", "00061024") + good, ErrVersion, 0, func(c *Counts) uint64 { return c.Version }},
		{"length beyond the message", edit("00060024", "00060025"), ErrRecord, 0, func(c *Counts) uint64 { return c.Record }},
		{"length below the record", edit("00060024", "00060020") + good, ErrRecord, 0, nil},
		{"length zero", edit("00060024", "00060000") + good, ErrRecord, 0, nil},
		{"rest too short for a record", good + "00060024", ErrRecord, 1, nil},
		{"unknown protocol", edit("0006", "0001") + good, nil, 1, func(c *Counts) uint64 { return c.Protocol }},
		{"TCP state 11", edit("0000000300019c41", "00000003000b9c41") + good, nil, 1, func(c *Counts) uint64 { return c.State }},
		{"UDP state 1", edit("0006", "0011") + good, nil, 1, func(c *Counts) uint64 { return c.State }},
		{"one packet", edit("00000003", "00002003") + good, nil, 1, func(c *Counts) uint64 { return c.OnePacket }},
		{"template without client port", edit("00000003", "00001803") + good, nil, 1, func(c *Counts) uint64 { return c.Template }},
		{"fwmark template", strings.Replace(edit("00000003", "00001003"), "0006", "0000", 1), nil, 1, nil},
		{"template state 2", edit("0000000300019c41", "0000100300029c41") + good, nil, 1, func(c *Counts) uint64 { return c.State }},
		{"unknown option", edit("00060024", "00060028") + "04020000" + good, nil, 1, func(c *Counts) uint64 { return c.UnknownOption }},
		{"unknown optional option", edit("00060024", "00060028") + "44020000" + good, nil, 2, nil},
		{"option cut off", edit("00060024", "00060028") + "44030000" + good, ErrOption, 0, func(c *Counts) uint64 { return c.Option }},
		{"option of length 0", edit("00060024", "00060028") + "44004400" + good, ErrOption, 0, nil},
		{"sequence option of 2 bytes", edit("00060024", "00060028") + "01020000" + good, ErrOption, 0, nil},
		{"name twice", edit("00060024", "0006002a") + "030161030162" + "0000" + good, ErrOption, 0, nil},
		{"name of 17 bytes", edit("00060024", "00060037") + "0311" + strings.Repeat("61", 17) + "00" + good, ErrOption, 0, nil},
		{"data without name", edit("00060024", "00060028") + "02020000" + good, nil, 1, func(c *Counts) uint64 { return c.PE }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body, err := hex.DecodeString(tt.msg)
			if err != nil {
				t.Fatal(err)
			}
			size := HeaderSize + len(body)
			msg := append([]byte{0, 9, byte(size >> 8), byte(size), 1, 1, 0, 0}, body...)
			var d Decoder
			got, err := decodeAll(t, &d, msg)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if len(got) != tt.records {
				t.Errorf("%d records, want %d", len(got), tt.records)
			}
			if tt.count != nil && tt.count(&d.Counts) != 1 {
				t.Errorf("not counted: %+v", d.Counts)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	for _, tt := range []struct {
		name, msg string
		id        uint8
		err       error
	}{
		{"empty", "", 0, ErrShort},
		{"size field too large", "0051000900010000", 0, ErrSize},
		{"bytes after the message", "005100080001000000", 0, ErrSize},
		{"foreign sync ID", "0051000800010000", 0x52, ErrSyncID},
		{"own sync ID", "0051000800010000", 0x51, nil},
		{"spare not zero is version 0 without records", "0051000800010001", 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg, err := hex.DecodeString(tt.msg)
			if err != nil {
				t.Fatal(err)
			}
			d := Decoder{SyncID: tt.id}
			if got, err := decodeAll(t, &d, msg); !errors.Is(err, tt.err) || len(got) != 0 {
				t.Errorf("%d records, error %v, want %v", len(got), err, tt.err)
			}
		})
	}
}

// TestWrappedCount: the kernel once labelled 679 records as 167; all are read.
func TestWrappedCount(t *testing.T) {
	var msg []byte
	const n = 679
	size := HeaderSize + n*RecordSize4
	msg = append(msg, 0, 1, byte(size>>8), byte(size&0xff), n&0xff, 1, 0, 0)
	rec, _ := hex.DecodeString(rec4)
	for range n {
		msg = append(msg, rec...)
	}
	var d Decoder
	got, err := decodeAll(t, &d, msg)
	if err != nil || len(got) != n || d.Counts.Miscounted != 0 {
		t.Errorf("%d records of %d, %v, %+v", len(got), n, err, d.Counts)
	}
}

func TestVersion0(t *testing.T) {
	msg, err := hex.DecodeString(message0)
	if err != nil {
		t.Fatal(err)
	}
	want := tcp4()
	want.FWMark, want.Timeout = 0, 0
	got, err := decodeAll(t, &Decoder{}, msg)
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	msg[20+4], msg[21+4] = 0x06, 0x03 // sequence flags, but no sequence data
	if got, err := decodeAll(t, &Decoder{}, msg); !errors.Is(err, ErrRecord) || len(got) != 0 {
		t.Errorf("without its sequence data: %+v, %v", got, err)
	}
}

func TestSplit(t *testing.T) {
	conns := make([]conntable.Connection, 600)
	for i := range conns {
		conns[i] = tcp4()
	}
	for _, tt := range []struct{ max, want int }{
		{1472, 40},
		{MaxSize, MaxRecords},
		{HeaderSize + RecordSize4, 1},
	} {
		msg, n, err := AppendMessage(nil, 1, tt.max, conns)
		if err != nil || n != tt.want || len(msg) > tt.max {
			t.Errorf("at most %d bytes: %d records in %d bytes, %v; want %d records", tt.max, n, len(msg), err, tt.want)
		}
	}
	if msg, n, err := AppendMessage([]byte("x"), 1, 40, conns); err == nil || n != 0 || string(msg) != "x" {
		t.Errorf("a record larger than the message: %q, %d, %v", msg, n, err)
	}
}

func TestUnencodable(t *testing.T) {
	mixed := tcp4()
	mixed.Dest = tcp6().Dest
	long := tcp4()
	long.PEName = strings.Repeat("x", 17)
	big := tcp4()
	big.PEName, big.PEData = "sip", make([]byte, 256)
	for _, c := range []conntable.Connection{mixed, long, big, {}} {
		if _, n, err := AppendMessage(nil, 1, 1472, []conntable.Connection{c, tcp4()}); err == nil || n != 0 {
			t.Errorf("%+v was encoded", c)
		}
		if _, n, err := AppendMessage(nil, 1, 1472, []conntable.Connection{tcp4(), c}); err != nil || n != 1 {
			t.Errorf("before %+v: %d, %v", c, n, err)
		}
	}
}

func TestTimeoutRounding(t *testing.T) {
	for d, want := range map[time.Duration]uint32{
		-time.Second: 0, 0: 0, 1: 1, time.Second: 1, time.Second + 1: 2, 1 << 62: 0xffffffff, 1<<63 - 1: 0xffffffff,
	} {
		if got := seconds(d); got != want {
			t.Errorf("%v is %d s, want %d", d, got, want)
		}
	}
}

func genAddr(t *rapid.T, v6 bool, label string) netip.AddrPort {
	n := 4
	if v6 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label))
	return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, label+"port"))
}

func genConn(t *rapid.T) conntable.Connection {
	v6 := rapid.Bool().Draw(t, "v6")
	c := conntable.Connection{
		Dest:    genAddr(t, v6, "dest"),
		Flags:   rapid.Uint32().Draw(t, "flags") &^ conntable.FlagOnePacket,
		FWMark:  rapid.Uint32().Draw(t, "mark"),
		Timeout: time.Duration(rapid.Uint32().Draw(t, "timeout")) * time.Second,
	}
	c.Client, c.Virtual = genAddr(t, v6, "client"), genAddr(t, v6, "virtual")
	c.Template = rapid.Bool().Draw(t, "template")
	if c.Template {
		c.Flags = c.Flags&^conntable.FlagNoCPort | conntable.FlagTemplate
		c.State = uint16(rapid.IntRange(0, 1).Draw(t, "state"))
		c.Protocol = rapid.Byte().Draw(t, "protocol")
	} else {
		c.Flags &^= conntable.FlagTemplate
		c.Protocol = rapid.SampledFrom([]uint8{ProtoTCP, ProtoUDP, ProtoSCTP, ProtoAH, ProtoESP}).Draw(t, "protocol")
		c.State = uint16(rapid.IntRange(0, int(states(c.Protocol))-1).Draw(t, "state"))
	}
	if rapid.Bool().Draw(t, "seq") {
		w := rapid.SliceOfN(rapid.Uint32(), 6, 6).Draw(t, "words")
		c.Seq = &conntable.SeqPair{In: conntable.Seq{Init: w[0], Delta: w[1], Prev: w[2]}, Out: conntable.Seq{Init: w[3], Delta: w[4], Prev: w[5]}}
	}
	if rapid.Bool().Draw(t, "pe") {
		c.PEName = rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 1, maxPEName, maxPEName).Draw(t, "name")
		c.PEData = rapid.SliceOfN(rapid.Byte(), 1, maxPEData).Draw(t, "data")
	}
	return c
}

// TestRoundTrip: whatever is told is understood, in order, over as many
// messages as it takes.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		conns := rapid.SliceOfN(rapid.Custom(genConn), 0, 40).Draw(t, "conns")
		comesBack(t, AppendMessage, rapid.IntRange(500, 4000).Draw(t, "max"), conns)
	})
}

// An encoder is AppendMessage or AppendMessage0.
type encoder func(dst []byte, syncID uint8, max int, conns []conntable.Connection) ([]byte, int, error)

// comesBack tells conns in messages of at most max bytes, and decodes them.
func comesBack(t *rapid.T, encode encoder, max int, conns []conntable.Connection) {
	t.Helper()
	var d Decoder
	var got []conntable.Connection
	for rest := conns; len(rest) > 0; {
		msg, n, err := encode(nil, 3, max, rest)
		if err != nil || n == 0 || len(msg) > max {
			t.Fatalf("%d records, %d of %d bytes: %v", n, len(msg), max, err)
		}
		if err := d.Decode(msg, func(c *conntable.Connection) { got = append(got, clone(c)) }); err != nil {
			t.Fatalf("%v: %+v", err, d.Counts)
		}
		rest = rest[n:]
	}
	if len(got) != len(conns) {
		t.Fatalf("%d of %d came back: %+v", len(got), len(conns), d.Counts)
	}
	for i := range conns {
		if !reflect.DeepEqual(got[i], conns[i]) {
			t.Fatalf("record %d\n got %+v\nwant %+v", i, got[i], conns[i])
		}
	}
}

// TestKernelMessages: every datagram recorded from a real kernel, on a
// little-endian machine (one in hex a line), decodes without a drop, and
// encodes to the same bytes again.
func TestKernelMessages(t *testing.T) {
	for _, v := range []struct {
		files  string
		count  int // which byte of a message it is
		encode encoder
		kinds  []string // that there must be of each kernel
	}{
		{"kernel-*.hex", 4, AppendMessage, []string{
			"4/6", "6/6", "4/17", "6/17", "4/132", "4/6 template", "6/6 template", "4/0 template", "4/17 template sip", "4/17 seq", "4/17 mark",
		}},
		{"v0-*.hex", 0, AppendMessage0, []string{"4/6", "4/17", "4/132", "4/6 template", "4/17 seq"}},
	} {
		files, err := filepath.Glob("testdata/" + v.files)
		if err != nil || len(files) != 2 {
			t.Fatalf("recordings %v, %v; want those of two kernels", files, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for i, line := range strings.Fields(string(text)) {
				msg, err := hex.DecodeString(line)
				if err != nil {
					t.Fatalf("%s:%d: %v", f, i+1, err)
				}
				var d Decoder
				got, err := decodeAll(t, &d, msg)
				if err != nil || int(msg[v.count]) != len(got) {
					t.Errorf("%s:%d: %d of %d records: %v, %+v", f, i+1, len(got), msg[v.count], err, d.Counts)
					continue
				}
				for i := range got {
					seen[kind(&got[i])] = true
				}
				again, _, err := v.encode(nil, msg[1], MaxSize, got)
				if err != nil || !bytes.Equal(again, msg) {
					t.Errorf("%s:%d: encoded again %x, %v\nwant %x", f, i+1, again, err, msg)
				}
			}
			for _, k := range v.kinds {
				if !seen[k] {
					t.Errorf("%s has no record of kind %q", f, k)
				}
			}
		}
	}
}

// kind is what a record is an example of: address family and protocol, and
// what else it has.
func kind(c *conntable.Connection) string {
	k := fmt.Sprintf("4/%d", c.Protocol)
	if c.Client.Addr().Is6() {
		k = fmt.Sprintf("6/%d", c.Protocol)
	}
	switch {
	case c.Template && c.PEName != "":
		return k + " template " + c.PEName
	case c.Template:
		return k + " template"
	case c.Seq != nil:
		return k + " seq"
	case c.FWMark != 0:
		return k + " mark"
	}
	return k
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"0051000800010000", "0051002c01010000" + rec4, "0051005001010000" + rec6, message0} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var d Decoder
		got, err := decodeAll(t, &d, msg)
		if uint64(len(got)) != d.Counts.Records {
			t.Fatalf("%d handed on, %d counted", len(got), d.Counts.Records)
		}
		if max := len(msg) / recordSizeV0; len(got) > max {
			t.Fatalf("%d records from %d bytes (%v)", len(got), len(msg), err)
		}
		for i := range got {
			again, n, err := AppendMessage(nil, 1, MaxSize, got[i:i+1])
			if err != nil || n != 1 {
				t.Fatalf("decoded %+v cannot be encoded: %v", got[i], err)
			}
			back, err := decodeAll(t, &Decoder{}, again)
			if err != nil || len(back) != 1 || !reflect.DeepEqual(back[0], got[i]) {
				t.Fatalf("%+v came back as %+v (%v)", got[i], back, err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	conns := make([]conntable.Connection, 40)
	for i := range conns {
		conns[i] = tcp4()
	}
	msg, _, _ := AppendMessage(nil, 1, 1472, conns)
	var d Decoder
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Decode(msg, func(*conntable.Connection) { n++ }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
}

func BenchmarkAppendMessage(b *testing.B) {
	conns := make([]conntable.Connection, 40)
	for i := range conns {
		conns[i] = tcp4()
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _, _ = AppendMessage(buf[:0], 1, 1472, conns)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(40*b.N), "ns/record")
}
