package partition

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	d, err := NewDivider(Plan{
		VIPs: append(vips("10.9.0.100", "2001:db8::100"), netip.MustParsePrefix("10.9.7.0/24")), Buckets: 256, Seed: 0x5a17,
		Default: Division{Sense: SrcPort},
		Services: []Service{
			{VIP: vips("10.9.0.100")[0], Division: Division{Sense: SrcAddr}},
			{Proto: TCP, VIP: vips("10.9.0.100")[0], Port: 80, Why: "persistent", Division: Division{Sense: SrcAddr, Bits4: 24}},
			{VIP: netip.MustParsePrefix("10.9.7.0/24"), Port: 53, Division: Division{Sense: DstAddr | SrcPort}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ proto, client, vip, service, sense, why string }{
		{"tcp", "198.51.100.7:40312", "10.9.0.100:80", "tcp 10.9.0.100:80", "src-addr/24", "persistent"},
		{"udp", "198.51.100.7:40312", "10.9.0.100:80", "* 10.9.0.100:*", "src-addr", "configured"},
		{"sctp", "198.51.100.7:40312", "10.9.7.9:53", "* 10.9.7.0/24:53", "dst-addr,src-port", "configured"},
		{"tcp", "198.51.100.7:40312", "10.9.7.9:80", "default", "src-port", "no service"},
		{"TCP", "[2001:db8::7]:40312", "[2001:db8::100]:80", "default", "src-port", "no service"},
		{"icmp", "198.51.100.7", "10.9.0.100", "none", "src-addr", "no ports"},
		{"icmp", "2001:db8::7", "2001:db8::100", "none", "src-addr", "no ports"},
		{"47", "198.51.100.7", "10.9.0.100", "none", "src-addr", "no ports"},
	} {
		f, err := ParseFlow(c.proto, c.client, c.vip)
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.Explain(f)
		if err != nil {
			t.Fatal(err)
		}
		if e.Service != c.service || e.Sense != c.sense || e.Method != "hash" || !strings.Contains(e.Why, c.why) {
			t.Errorf("%v: %+v", f, e)
		}
		if again, err := ParseFlow(strings.Fields(e.Flow)[0], c.client, c.vip); err != nil || again != f {
			t.Errorf("%q reads as %v, %v", e.Flow, again, err)
		}
	}
	if _, err := d.Explain(Flow{TCP, netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("10.9.0.9:80")}); err == nil {
		t.Error("explained a flow to nobody of ours")
	}
}

func TestParseFlowRefuses(t *testing.T) {
	for _, c := range [][3]string{
		{"tpc", "192.0.2.1:1", "10.9.0.100:80"},
		{"0", "192.0.2.1", "10.9.0.100"},
		{"256", "192.0.2.1", "10.9.0.100"},
		{"tcp", "192.0.2.1", "10.9.0.100:80"},
		{"tcp", "192.0.2.1:70000", "10.9.0.100:80"},
		{"icmp", "192.0.2.1:5", "10.9.0.100"},
		{"tcp", "192.0.2.1:1", "[2001:db8::100]:80"},
		{"icmp6", "192.0.2.1", "10.9.0.100"},
		{"tcp", "[fe80::1%eth0]:1", "[2001:db8::100]:80"},
	} {
		if f, err := ParseFlow(c[0], c[1], c[2]); err == nil {
			t.Errorf("%v: read as %v", c, f)
		}
	}
}

// The filter shows the flow's packets, both ways, and no other's.
func TestCapture(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("needs tcpdump: ", err)
	}
	const (
		tcp4  = "4500 0028 0000 0000 40 06"
		udp4  = "4500 001c 0000 0000 40 11"
		tcp6  = "60000000 0014 06 40"
		echo4 = "4500 001c 0000 0000 40 01"
		echo6 = "60000000 0008 3a 40"
		gre4  = "4500 0018 0000 0000 40 2f"
		rest  = "00000000 00000000 5010 0000 0000 0000"
	)
	packets := []string{
		tcp4 + to4 + ports + rest, tcp4 + from4 + back + rest, // the flow, and its answer
		tcp4 + to4 + back + rest, tcp4 + from4 + ports + rest, // other ports, or the ports the other way round
		udp4 + to4 + ports + "0008 0000",
		tcp6 + to6 + ports + rest, tcp6 + from6 + back + rest,
		echo4 + to4 + "0800 0000 0000 0000", echo4 + from4 + "0000 0000 0000 0000",
		echo6 + to6 + "8000 0000 0000 0000",
		gre4 + to4 + "00000800",
	}
	for _, c := range []struct {
		flow [3]string
		want []int
	}{
		{[3]string{"tcp", "192.0.2.7:40001", "10.9.0.100:80"}, []int{0, 1}},
		{[3]string{"udp", "192.0.2.7:40001", "10.9.0.100:80"}, []int{4}},
		{[3]string{"tcp", "[2001:db8::7]:40001", "[2001:db8::100]:80"}, []int{5, 6}},
		{[3]string{"icmp", "192.0.2.7", "10.9.0.100"}, []int{7, 8}},
		{[3]string{"icmp", "2001:db8::7", "2001:db8::100"}, []int{9}},
		{[3]string{"gre", "192.0.2.7", "10.9.0.100"}, []int{10}},
	} {
		f, err := ParseFlow(c.flow[0], c.flow[1], c.flow[2])
		if err != nil {
			t.Fatal(err)
		}
		var shown []int
		for i, p := range packets {
			if captured(t, tcpdump, f.Capture(), unhex(t, p)) {
				shown = append(shown, i)
			}
		}
		if !slices.Equal(shown, c.want) {
			t.Errorf("%q shows packets %v, want %v", f.Capture(), shown, c.want)
		}
	}
}

// captured reports whether tcpdump shows an IP packet under a filter.
func captured(t *testing.T, tcpdump, filter string, packet []byte) bool {
	t.Helper()
	ether := uint16(0x0800)
	if packet[0]>>4 == 6 {
		ether = 0x86dd
	}
	frame := append(binary.BigEndian.AppendUint16(make([]byte, 12), ether), packet...)
	file := []byte{0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0} // libpcap, Ethernet
	file = append(file, make([]byte, 8)...)
	for range 2 {
		file = binary.LittleEndian.AppendUint32(file, uint32(len(frame)))
	}
	cmd := exec.Command(tcpdump, "-nr", "-", filter)
	cmd.Stdin = bytes.NewReader(append(file, frame...))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", filter, err)
	}
	return len(bytes.TrimSpace(out)) > 0
}
