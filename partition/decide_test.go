package partition

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

// unhex reads hexadecimal with spaces.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	to4   = " 00 00 c000 0207 0a09 0064 "                                         // checksum, 192.0.2.7, 10.9.0.100
	from4 = " 00 00 0a09 0064 c000 0207 "                                         // the other way
	to6   = " 20010db8000000000000000000000007 20010db8000000000000000000000100 " // client, VIP
	from6 = " 20010db8000000000000000000000100 20010db8000000000000000000000007 " // the other way
	ports = " 9c41 0050 "                                                         // 40001, 80
	back  = " 0050 9c41 "                                                         // the other way
	syn   = ports + "00000000 00000000 5002 0000 0000 0000"                       // TCP
	ack   = ports + "00000000 00000000 5010 0000 0000 0000"                       // TCP
	quick = "4500 0014 0000 4000 40 11" + from4                                   // quoted IPv4 header, UDP
)

func TestDecide(t *testing.T) {
	d, err := NewDivider(Plan{
		VIPs: vips("10.9.0.100", "2001:db8::100"), Buckets: 256, Seed: 0x5a17, Default: Division{Sense: SrcPort},
		Services: []Service{{Proto: TCP, VIP: vips("10.9.0.100")[0], Port: 80, Division: Division{Sense: SrcAddr}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	client, vip := netip.MustParseAddrPort("192.0.2.7:40001"), netip.MustParseAddrPort("10.9.0.100:80")
	client6, vip6 := netip.MustParseAddrPort("[2001:db8::7]:40001"), netip.MustParseAddrPort("[2001:db8::100]:80")
	none := Decision{Bucket: -1, Division: ByAddress}
	with := func(d Decision, class Class) Decision { d.Class = class; return d }
	byAddr, byAddr6 := Decision{Class: Open, Bucket: d.AddrBucket(client.Addr()), Division: ByAddress},
		Decision{Class: Open, Bucket: d.AddrBucket(client6.Addr()), Division: ByAddress}
	tcp := Decision{Class: Open, Bucket: d.Bucket(Division{Sense: SrcAddr}, client, vip), Division: 1}
	udp := Decision{Class: Open, Bucket: d.Bucket(Division{Sense: SrcPort}, client, vip)}
	udp6 := Decision{Class: Open, Bucket: d.Bucket(Division{Sense: SrcPort}, client6, vip6)}
	quoted, quoted6 := udp, udp6
	quoted.Quoted, quoted6.Quoted = true, true

	for what, c := range map[string]struct {
		packet string
		want   Decision
	}{
		"SYN":                   {"4500 0028 0000 0000 40 06" + to4 + syn, tcp},
		"ACK":                   {"4500 0028 0000 0000 40 06" + to4 + ack, with(tcp, Rest)},
		"with IP options":       {"4600 002c 0000 0000 40 06" + to4 + "01010100" + ack, with(tcp, Rest)},
		"half a TCP header":     {"4500 001e 0000 0000 40 06" + to4 + ports + "00000000 0000", with(none, Malformed)},
		"UDP":                   {"4500 001c 0000 0000 40 11" + to4 + ports + "0008 0000", udp},
		"first fragment":        {"4500 001c 0000 2000 40 11" + to4 + ports + "0008 0000", with(none, Later)},
		"last fragment":         {"4500 001c 0000 0001 40 11" + to4 + ports + "0008 0000", with(none, Later)},
		"do not fragment":       {"4500 001c 0000 4000 40 11" + to4 + ports + "0008 0000", udp},
		"SCTP INIT":             {"4500 0024 0000 0000 40 84" + to4 + ports + "00000000 00000000 01000004", udp},
		"SCTP DATA":             {"4500 0024 0000 0000 40 84" + to4 + ports + "00000000 00000000 00000004", with(udp, Rest)},
		"echo":                  {"4500 001c 0000 0000 40 01" + to4 + "0800 0000 0000 0000", byAddr},
		"timestamp":             {"4500 001c 0000 0000 40 01" + to4 + "0d00 0000 0000 0000", byAddr},
		"GRE":                   {"4500 0018 0000 0000 40 2f" + to4 + "00000800", byAddr},
		"error":                 {"4500 0038 0000 0000 40 01" + to4 + "0304 0000 0000 0578" + quick + back + "0000 0000", quoted},
		"error, short quote":    {"4500 0032 0000 0000 40 01" + to4 + "0304 0000 0000 0578" + quick + "0050", byAddr},
		"error, quoted options": {"4500 0038 0000 0000 40 01" + to4 + "0304 0000 0000 0578 46" + quick[2:] + back + "0000 0000", byAddr},
		"to somebody else":      {"4500 001c 0000 0000 40 11" + from4 + ports + "0008 0000", none},

		"UDP over IPv6":         {"60000000 0008 11 40" + to6 + ports + "0008 0000", udp6},
		"hop-by-hop options":    {"60000000 0010 00 40" + to6 + "1100 0104 0000 0000" + ports + "0008 0000", udp6},
		"routing, destination":  {"60000000 0018 2b 40" + to6 + "3c00 0400 0000 0000 1100 0104 0000 0000" + ports + "0008 0000", udp6},
		"authentication header": {"60000000 0014 33 40" + to6 + "1101 0000 00000001 00000001" + ports + "0008 0000", udp6},
		"IPv6 fragment":         {"60000000 0010 2c 40" + to6 + "1100 0001 0000 0001" + ports + "0008 0000", with(none, Later)},
		"IPv6 later fragment":   {"60000000 0010 2c 40" + to6 + "1100 0008 0000 0001" + ports + "0008 0000", with(none, Later)},
		"echo over IPv6":        {"60000000 0008 3a 40" + to6 + "8000 0000 0000 0000", byAddr6},
		"neighbour":             {"60000000 0018 3a ff" + to6 + "8700 0000 0000 0000 20010db8000000000000000000000100", with(none, Neighbour)},
		"packet too big":        {"60000000 0038 3a 40" + to6 + "0200 0000 0000 0500 60000000 0008 11 40" + from6 + back + "0000 0000", quoted6},
		"too big, a fragment":   {"60000000 0040 3a 40" + to6 + "0200 0000 0000 0500 60000000 0010 2c 40" + from6 + "1100 0001 0000 0001" + back + "0000 0000", quoted6},
		"no next header":        {"60000000 0000 3b 40" + to6, byAddr6},
	} {
		p, err := ParsePacket(unhex(t, c.packet))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got := d.Decide(&p); got != c.want {
			t.Errorf("%s: %+v, want %+v (%+v)", what, got, c.want, p)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(unhex(f, "4500 0028 0000 0000 40 06"+to4+syn))
	f.Add(unhex(f, "4500 0038 0000 0000 40 01"+to4+"0304 0000 0000 0578"+quick+back+"0000 0000"))
	f.Add(unhex(f, "60000000 0018 2b 40"+to6+"3c00 0400 0000 0000 1100 0104 0000 0000"+ports+"0008 0000"))
	f.Add(unhex(f, "60000000 0040 3a 40"+to6+"0200 0000 0000 0500 60000000 0010 2c 40"+from6+"1100 0001 0000 0001"+back+"0000 0000"))
	d, err := NewDivider(Plan{VIPs: vips("0.0.0.0/0", "::/0"), Buckets: 64, Default: Division{Sense: SrcAddr | DstAddr | SrcPort | DstPort}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePacket(b)
		if err != nil {
			return
		}
		if p.Src.Is4() != (b[0]>>4 == 4) || p.Src.BitLen() != p.Dst.BitLen() {
			t.Fatalf("%+v", p)
		}
		got := d.Decide(&p)
		decided := got.Class == Open || got.Class == Rest
		if got.Class == NotOurs || decided != (got.Bucket >= 0 && got.Bucket < d.Buckets) {
			t.Fatalf("%+v: %+v", p, got)
		}
		// What comes behind the packet changes nothing.
		if again, err := ParsePacket(append(b[:len(b):len(b)], 1, 2, 3, 4)); err != nil || again != p {
			t.Fatalf("%+v, %v; before %+v", again, err, p)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	d, err := NewDivider(Plan{
		VIPs: vips("10.9.0.100"), Buckets: 256, Default: Division{Sense: SrcPort},
		Services: []Service{{Proto: TCP, VIP: vips("10.9.0.100")[0], Port: 80, Division: Division{Sense: SrcAddr}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	packet := unhex(b, "4500 0028 0000 0000 40 06"+to4+ack)
	b.ReportAllocs()
	for b.Loop() {
		p, err := ParsePacket(packet)
		if err != nil || d.Decide(&p).Class != Rest {
			b.Fatal(err)
		}
	}
}
