package kernelsync

import (
	"encoding/hex"
	"errors"
	"net/netip"
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
		comesBack(t, AppendMessage0, rapid.IntRange(headerSizeV0+recordSizeV0+seqDataSize, 2000).Draw(t, "max"), conns)
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
