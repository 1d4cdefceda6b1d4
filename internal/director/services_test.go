package director

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"saru/ipvs"
	"saru/partition"
)

func service(proto uint8, addr string, flags uint32, netmask uint32) ipvs.Service {
	at := netip.MustParseAddrPort(addr)
	s := ipvs.Service{Family: unix.AF_INET, Protocol: proto, Addr: at, Flags: flags, Netmask: netmask}
	if at.Addr().Is6() {
		s.Family = unix.AF_INET6
	}
	return s
}

// What the services in IPVS make of a share that is divided by source port.
func TestServicesDivide(t *testing.T) {
	const keep, mask24, mask32 = ipvs.ServicePersistent, 0x00ffffff, 0xffffffff // as IPVS gives them on a little-endian host
	mark := ipvs.Service{Family: unix.AF_INET, FWMark: 5, Flags: keep, Netmask: mask24}
	sip := service(partition.UDP, "10.9.0.100:5060", keep, mask32)
	sip.PEName = "sip"
	plain := service(partition.TCP, "10.9.0.100:80", 0, mask32)
	for what, c := range map[string]struct {
		services []ipvs.Service
		flow     string
		sense    string // of the flow
		why      string
	}{
		"plain":              {[]ipvs.Service{plain}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-port", "no service"},
		"persistent":         {[]ipvs.Service{service(6, "10.9.0.100:80", keep, mask32)}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-addr", "persistent"},
		"its neighbour":      {[]ipvs.Service{service(6, "10.9.0.100:80", keep, mask32)}, "tcp 192.0.2.7:4000 10.9.0.100:81", "src-port", "no service"},
		"netmask":            {[]ipvs.Service{service(6, "10.9.0.100:80", keep, mask24)}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-addr/24", "netmask /24"},
		"all ports":          {[]ipvs.Service{service(6, "10.9.0.100:0", keep, mask32)}, "tcp 192.0.2.7:4000 10.9.0.100:81", "src-addr", "persistent"},
		"IPv6":               {[]ipvs.Service{service(6, "[2001:db8::100]:80", keep, 64)}, "tcp [2001:db8::7]:4000 [2001:db8::100]:80", "src-addr/64", "persistent"},
		"somebody else's":    {[]ipvs.Service{service(6, "10.9.0.99:80", keep, mask32)}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-port", "no service"},
		"FTP":                {[]ipvs.Service{service(6, "10.9.0.100:21", 0, mask32), plain}, "tcp 192.0.2.7:4000 10.9.0.100:21", "src-addr", "FTP"},
		"FTP's data":         {[]ipvs.Service{service(6, "10.9.0.100:21", 0, mask32), plain}, "tcp 192.0.2.7:4000 10.9.0.100:34567", "src-addr", "FTP"},
		"beside FTP":         {[]ipvs.Service{service(6, "10.9.0.100:21", 0, mask32), plain}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-port", "kept"},
		"SIP's media":        {[]ipvs.Service{sip}, "udp 192.0.2.7:4000 10.9.0.100:16384", "src-addr", "SIP"},
		"mark":               {[]ipvs.Service{mark}, "tcp 192.0.2.7:4000 10.9.0.100:443", "src-addr/24", "mark 5"},
		"mark, IPv6":         {[]ipvs.Service{mark}, "tcp [2001:db8::7]:4000 [2001:db8::100]:80", "src-port", "no service"},
		"finer under a mark": {[]ipvs.Service{mark, service(6, "10.9.0.100:80", keep, mask32)}, "tcp 192.0.2.7:4000 10.9.0.100:80", "src-addr/24", "persistent"},
	} {
		s := &Settings{VIPs: partition.Hosts(netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("2001:db8::100")), Buckets: 256, Sense: partition.SrcPort}
		s.Services = s.divisions(c.services)
		d, err := partition.NewDivider(s.Plan())
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(c.flow)
		flow, err := partition.ParseFlow(words[0], words[1], words[2])
		if err != nil {
			t.Fatal(err)
		}
		if e, err := d.Explain(flow); err != nil || e.Sense != c.sense || !strings.Contains(e.Why, c.why) {
			t.Errorf("%s: %+v, %v", what, e, err)
		}
		shape := s.Shape()
		slices.Reverse(c.services)
		s.Services = s.divisions(c.services)
		if s.Shape() != shape {
			t.Errorf("%s: the order of the services changes the shape", what)
		}
	}
}

// Services that change nothing do not change the shape: adding one interrupts
// nobody.
func TestPlainServicesKeepTheShape(t *testing.T) {
	s := &Settings{VIPs: partition.Hosts(netip.MustParseAddr("10.9.0.100")), Buckets: 256, Sense: partition.SrcAddr}
	before := s.Shape()
	s.Services = s.divisions([]ipvs.Service{
		service(6, "10.9.0.100:80", 0, 0xffffffff), service(6, "10.9.0.100:443", ipvs.ServicePersistent, 0xffffffff), service(6, "10.9.0.100:21", 0, 0),
	})
	if s.Shape() != before {
		t.Errorf("%v", s.Services)
	}
}
