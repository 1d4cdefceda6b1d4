package lan

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// The request of RFC 5227 section 2.3 for 10.9.0.100, byte for byte.
func TestAppendFrame(t *testing.T) {
	p := arpPacket{
		op: opRequest, senderMAC: [6]byte{0x02, 0, 0x5e, 0, 1, 0xc9},
		sender: netip.MustParseAddr("10.9.0.100"), target: netip.MustParseAddr("10.9.0.100"),
	}
	got := hex.EncodeToString(p.appendFrame(nil, broadcast, [6]byte{2, 0, 0, 0, 0, 1}))
	const want = "ffffffffffff" + "020000000001" + "0806" +
		"0001" + "0800" + "06" + "04" + "0001" +
		"02005e0001c9" + "0a090064" + "000000000000" + "0a090064"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParseARP(f *testing.F) {
	whole, _ := hex.DecodeString("ffffffffffff0200000000010806000108000604000102005e0001c90a0900640000000000000a090064")
	f.Add(whole)
	f.Add(whole[:41])
	f.Add(append(whole[:len(whole):len(whole)], make([]byte, 18)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseARP(b)
		if err != nil {
			return
		}
		again := p.appendFrame(nil, [6]byte(b), [6]byte(b[6:]))
		if string(again) != string(b[:arpLen]) {
			t.Errorf("% x\ncame back as\n% x", b, again)
		}
	})
}
