package kernelsync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"saru/conntable"
)

func TestAppendMessage0(t *testing.T) {
	msg, n, err := AppendMessage0(nil, 7, 1472, []conntable.Connection{tcp4()})
	if err != nil || n != 1 || hex.EncodeToString(msg) != message0 {
		t.Errorf("%d records, %v, %x; want %s", n, err, msg, message0)
	}
}

// What version 0 can say comes back as it was, whole messages at a time.
func TestRoundTrip0(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var conns []conntable.Connection
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			c := genConn(t)
			if !c.Client.Addr().Is4() || !c.Virtual.Addr().Is4() || !c.Dest.Addr().Is4() {
				continue
			}
			c.PEName, c.PEData, c.Timeout, c.FWMark = "", nil, 0, 0
			c.Flags &= 0xffff
			if c.Seq == nil {
				c.Flags &^= conntable.FlagSeqMask
			} else {
				c.Flags |= conntable.FlagInSeq
			}
			conns = append(conns, c)
		}
		max := rapid.IntRange(headerSizeV0+recordSizeV0+seqDataSize, 2000).Draw(t, "max")
		var got []conntable.Connection
		for rest := conns; len(rest) > 0; {
			msg, n, err := AppendMessage0(nil, 3, max, rest)
			if err != nil || n == 0 || len(msg) > max {
				t.Fatalf("%d records in %d of %d bytes: %v", n, len(msg), max, err)
			}
			var d Decoder
			if err := d.Decode(msg, func(c *conntable.Connection) { got = append(got, clone(c)) }); err != nil {
				t.Fatalf("%v: %+v", err, d.Counts)
			}
			rest = rest[n:]
		}
		if len(got) != len(conns) {
			t.Fatalf("%d of %d came back", len(got), len(conns))
		}
		for i := range conns {
			if !reflect.DeepEqual(got[i], conns[i]) {
				t.Fatalf("record %d\n got %+v\nwant %+v", i, got[i], conns[i])
			}
		}
	})
}

func TestUnsayableInVersion0(t *testing.T) {
	six, sip, seq := tcp6(), tcp4(), tcp4()
	sip.PEName, sip.PEData = "sip", []byte("call")
	mapped := tcp4()
	mapped.Dest = netip.MustParseAddrPort("[2001:db8::5]:80")
	for _, c := range []conntable.Connection{six, sip, mapped} {
		if msg, n, err := AppendMessage0([]byte{1}, 1, 1472, []conntable.Connection{c, tcp4()}); n != 0 || len(msg) != 1 || !errors.Is(err, ErrVersion0) {
			t.Errorf("%v: %d records, %v", c.Client, n, err)
		}
	}
	// A flag that promises sequence data that is not there would make the
	// rest of the message nonsense.
	seq.Flags |= conntable.FlagInSeq
	msg, _, err := AppendMessage0(nil, 1, 1472, []conntable.Connection{seq})
	if err != nil || len(msg) != headerSizeV0+recordSizeV0 {
		t.Errorf("%x, %v", msg, err)
	}
}

// TestKernelMessages0: every version 0 datagram recorded from a real kernel,
// on a little-endian machine, decodes without a drop, and encodes to the same
// bytes again.
func TestKernelMessages0(t *testing.T) {
	files, err := filepath.Glob("testdata/v0-*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("recordings %v, %v", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Fields(string(text)) {
			msg, err := hex.DecodeString(line)
			if err != nil {
				t.Fatalf("%s:%d: %v", f, i+1, err)
			}
			var d Decoder
			got, err := decodeAll(t, &d, msg)
			if err != nil || int(msg[0]) != len(got) {
				t.Errorf("%s:%d: %d of %d records: %v, %+v", f, i+1, len(got), msg[0], err, d.Counts)
				continue
			}
			again, _, err := AppendMessage0(nil, msg[1], MaxSize, got)
			if err != nil || !bytes.Equal(again, msg) {
				t.Errorf("%s:%d: encoded again %x, %v\nwant %x", f, i+1, again, err, msg)
			}
		}
	}
}
