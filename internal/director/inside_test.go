package director

import (
	"net/netip"
	"slices"
	"testing"

	"saru/ipvs"
	"saru/partition"
)

func natSettings() *Settings {
	return &Settings{
		VIPs: partition.Hosts(netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("10.9.0.101")), Buckets: 256, Sense: partition.SrcPort, IPVS: true,
		Inside: &Inside{Address: netip.MustParseAddr("192.168.6.1"), Networks: []netip.Prefix{netip.MustParsePrefix("192.168.6.0/24")}},
	}
}

// Whatever the services are, a reply falls into the bucket of its flow, and so
// does the answer to what a real server opened by itself.
func TestBothDirectionsOfNAT(t *testing.T) {
	const keep, mask24, all = ipvs.ServicePersistent, 0x00ffffff, 0xffffffff
	client := netip.MustParseAddr("198.51.100.7")
	for what, services := range map[string][]offered{
		"none":             nil,
		"one":              {{service(6, "10.9.0.100:80", 0, all), []uint16{8080}}},
		"without servers":  {{service(6, "10.9.0.100:80", 0, all), nil}},
		"persistent":       {{service(6, "10.9.0.100:80", keep, mask24), []uint16{8080}}},
		"two, one port":    {{service(6, "10.9.0.100:80", keep, mask24), []uint16{8080}}, {service(6, "10.9.0.101:80", 0, all), []uint16{8080}}},
		"a chain of ports": {{service(6, "10.9.0.100:80", 0, all), []uint16{1}}, {service(6, "10.9.0.101:81", 0, all), []uint16{1, 2}}, {service(6, "10.9.0.100:82", keep, all), []uint16{2}}},
		"FTP":              {{service(6, "10.9.0.100:21", 0, all), []uint16{21}}, {service(6, "10.9.0.100:80", 0, all), []uint16{80}}},
		"mark":             {{ipvs.Service{Family: 2, FWMark: 3}, []uint16{8080}}},
	} {
		s := natSettings().follow(services)
		d, err := partition.NewDivider(s.Plan())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		server := netip.MustParseAddr("192.168.6.21")
		same := func(of string, there, back partition.Packet) {
			t.Helper()
			if a, b := d.Decide(&there), d.Decide(&back); a.Bucket != b.Bucket || a.Bucket < 0 {
				t.Errorf("%s, %s: %+v there, %+v back", what, of, a, b)
			}
		}
		for _, v := range services {
			vip := v.Addr
			if v.FWMark != 0 {
				vip = netip.MustParseAddrPort("10.9.0.101:443")
			}
			for _, port := range v.ports {
				same(v.Addr.String(),
					partition.Packet{Src: client, Dst: vip.Addr(), Proto: partition.TCP, SrcPort: 40001, DstPort: vip.Port()},
					partition.Packet{Src: server, Dst: client, Proto: partition.TCP, SrcPort: port, DstPort: 40001})
			}
		}
		same("outward",
			partition.Packet{Src: server, Dst: client, Proto: partition.UDP, SrcPort: 50001, DstPort: 123},
			partition.Packet{Src: client, Dst: s.outward(), Proto: partition.UDP, SrcPort: 123, DstPort: 50001})
		shape := s.Shape()
		slices.Reverse(services)
		if natSettings().follow(services).Shape() != shape {
			t.Errorf("%s: the order of the services changes the shape", what)
		}
	}
}

// Real servers that come and go do not change the shape.
func TestRealServersKeepTheShape(t *testing.T) {
	with := natSettings().follow([]offered{{service(6, "10.9.0.100:80", 0, 0xffffffff), []uint16{80}}})
	without := natSettings().follow([]offered{{service(6, "10.9.0.100:80", 0, 0xffffffff), nil}})
	if with.Shape() != without.Shape() {
		t.Error("the last real server's leaving changes the shape")
	}
}
