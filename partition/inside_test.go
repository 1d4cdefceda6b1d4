package partition

import (
	"net/netip"
	"testing"
)

func natPlan() Plan {
	return Plan{
		VIPs: vips("10.9.0.100", "192.168.6.1"), Buckets: 256, Seed: 0x5a17, Default: Division{Sense: SrcPort},
		Services: []Service{
			{VIP: vips("10.9.0.100")[0], Division: Outward},
			{Proto: TCP, VIP: vips("10.9.0.100")[0], Port: 80, Division: Division{Sense: SrcPort}},
			{Proto: UDP, VIP: vips("10.9.0.100")[0], Port: 53, Division: Division{Sense: SrcAddr, Bits4: 24}},
		},
		Inside: &Inside{
			Networks: []netip.Prefix{netip.MustParsePrefix("192.168.6.0/24")},
			Replies: []Reply{
				{TCP, 8080, Division{Sense: SrcPort}},
				{UDP, 53, Division{Sense: SrcAddr, Bits4: 24}},
			},
		},
	}
}

// Both directions of a flow fall into one bucket: of a service's flows, and of
// what a real server opens by itself.
func TestBothDirections(t *testing.T) {
	d, err := NewDivider(natPlan())
	if err != nil {
		t.Fatal(err)
	}
	at, host := netip.MustParseAddr, netip.MustParseAddr("198.51.100.7")
	server, vip := at("192.168.6.21"), at("10.9.0.100")
	quoting := func(proto uint8, from, to netip.Addr, sport, dport uint16) Quote {
		return Quote{Readable: true, Proto: proto, Src: from, Dst: to, SrcPort: sport, DstPort: dport}
	}
	for what, c := range map[string]struct{ there, back Packet }{
		"TCP": {
			Packet{Src: host, Dst: vip, Proto: TCP, SrcPort: 40001, DstPort: 80},
			Packet{Src: server, Dst: host, Proto: TCP, SrcPort: 8080, DstPort: 40001},
		},
		"UDP, masked": {
			Packet{Src: host, Dst: vip, Proto: UDP, SrcPort: 40001, DstPort: 53},
			Packet{Src: server, Dst: at("198.51.100.200"), Proto: UDP, SrcPort: 53, DstPort: 5},
		},
		"error of a real server": {
			Packet{Src: host, Dst: vip, Proto: TCP, SrcPort: 40001, DstPort: 80},
			Packet{Src: server, Dst: host, Proto: protoICMP, ICMP: 3, Quote: quoting(TCP, host, server, 40001, 8080)},
		},
		"outward": {
			Packet{Src: server, Dst: host, Proto: TCP, SrcPort: 50001, DstPort: 443, Opens: true},
			Packet{Src: host, Dst: vip, Proto: TCP, SrcPort: 443, DstPort: 50001},
		},
		"error about outward": {
			Packet{Src: server, Dst: host, Proto: UDP, SrcPort: 50001, DstPort: 123},
			Packet{Src: at("203.0.113.9"), Dst: vip, Proto: protoICMP, ICMP: 3, Quote: quoting(UDP, vip, host, 50001, 123)},
		},
		"ping outward": {
			Packet{Src: server, Dst: host, Proto: protoICMP, ICMP: 8},
			Packet{Src: host, Dst: vip, Proto: protoICMP, ICMP: 0},
		},
	} {
		there, back := d.Decide(&c.there), d.Decide(&c.back)
		if there.Bucket != back.Bucket || there.Bucket < 0 {
			t.Errorf("%s: %+v there, %+v back", what, there, back)
		}
	}
	// A real server that calls a virtual service is a client.
	call := Packet{Src: server, Dst: vip, Proto: TCP, SrcPort: 8080, DstPort: 80, Opens: true}
	if got := d.Decide(&call); got.Bucket != d.Bucket(Division{Sense: SrcPort}, netip.AddrPortFrom(server, 8080), netip.AddrPortFrom(vip, 80)) {
		t.Errorf("a real server's own call: %+v", got)
	}
	if got := d.Decide(&Packet{Src: at("192.168.7.1"), Dst: host, Proto: UDP}); got.Class != NotOurs {
		t.Errorf("from elsewhere: %+v", got)
	}
	other := natPlan()
	other.Inside.Replies[0].Port = 8081
	if o, err := NewDivider(other); err != nil || o.Shape() == d.Shape() {
		t.Errorf("%v; the reply ports are not in the shape", err)
	}
}

func TestInsideRefuses(t *testing.T) {
	for what, change := range map[string]func(p *Plan){
		"sense of the virtual address": func(p *Plan) { p.Default.Sense = SrcPort | DstPort },
		"no networks":                  func(p *Plan) { p.Inside.Networks = nil },
		"overlapping networks":         func(p *Plan) { p.Inside.Networks = append(p.Inside.Networks, p.Inside.Networks[0]) },
		"port 0":                       func(p *Plan) { p.Inside.Replies[0].Port = 0 },
		"ICMP":                         func(p *Plan) { p.Inside.Replies[0].Proto = 1 },
		"twice":                        func(p *Plan) { p.Inside.Replies = append(p.Inside.Replies, p.Inside.Replies[0]) },
	} {
		p := natPlan()
		change(&p)
		if _, err := NewDivider(p); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
