package partition

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func vips(text ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range text {
		if a, err := netip.ParseAddr(s); err == nil {
			all = append(all, Hosts(a)...)
		} else {
			all = append(all, netip.MustParsePrefix(s))
		}
	}
	return all
}

// The service that says most about a packet decides, in whatever order they
// are given.
func TestServices(t *testing.T) {
	division := func(n int) Division { return Division{Sense: SrcAddr, Bits4: n} }
	plan := Plan{
		VIPs: vips("10.9.0.100", "10.9.1.0/24"), Buckets: 256, Default: Division{Sense: SrcPort},
		Services: []Service{
			{VIP: vips("10.9.1.0/24")[0], Division: division(1)},
			{VIP: vips("10.9.1.0/24")[0], Port: 80, Division: division(2)},
			{VIP: vips("10.9.1.7")[0], Division: division(3)},
			{VIP: vips("10.9.0.100")[0], Division: division(4)},
			{VIP: vips("10.9.0.100")[0], Proto: UDP, Division: division(5)},
			{VIP: vips("10.9.0.100")[0], Port: 80, Division: division(6)},
			{VIP: vips("10.9.0.100")[0], Port: 80, Proto: TCP, Division: division(7)},
			{VIP: vips("10.9.1.128/25")[0], Division: division(8)},
		},
	}
	for range len(plan.Services) {
		d, err := NewDivider(plan)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			proto uint8
			to    string
			want  int
		}{
			{TCP, "10.9.0.100:80", 7},
			{UDP, "10.9.0.100:80", 6},
			{SCTP, "10.9.0.100:80", 6},
			{TCP, "10.9.0.100:81", 4},
			{UDP, "10.9.0.100:81", 5},
			{TCP, "10.9.1.1:80", 2},
			{TCP, "10.9.1.1:81", 1},
			{TCP, "10.9.1.7:80", 3},
			{TCP, "10.9.1.200:80", 8},
		} {
			if got := d.Divisions[d.division(c.proto, netip.MustParseAddrPort(c.to))]; got != division(c.want) {
				t.Errorf("%s %s: %v, want %v", ProtoName(c.proto), c.to, got, division(c.want))
			}
		}
		plan.Services = append(plan.Services[1:], plan.Services[0])
	}
}

// A plan that cannot be is refused, and the error names what is wrong.
func TestBadPlan(t *testing.T) {
	for want, change := range map[string]func(*Plan){
		"no virtual address": func(p *Plan) { p.VIPs = nil },
		"overlap":            func(p *Plan) { p.VIPs = vips("10.9.0.100", "10.9.0.0/24") },
		"::ffff:10.9.0.1":    func(p *Plan) { p.VIPs = vips("::ffff:10.9.0.1/128") },
		"100 buckets":        func(p *Plan) { p.Buckets = 100 },
		"sense 0":            func(p *Plan) { p.Default = Division{} },
		"one field":          func(p *Plan) { p.Default = Division{Sense: SrcPort | SrcAddr, Method: ByBlock} },
		"method 7":           func(p *Plan) { p.Default.Method = 7 },
		"netmask of 33":      func(p *Plan) { p.Default.Bits4 = 33 },
		"netmask of 129":     func(p *Plan) { p.Default.Bits6 = 129 },
		"no virtual address of this share": func(p *Plan) {
			p.Services = []Service{{VIP: vips("10.9.0.101")[0], Division: p.Default}}
		},
		"protocol 1": func(p *Plan) {
			p.Services = []Service{{Proto: 1, VIP: vips("10.9.0.100")[0], Division: p.Default}}
		},
		"name it once": func(p *Plan) {
			s := Service{VIP: vips("10.9.0.100")[0], Division: p.Default}
			other := s
			other.Sense = DstPort
			p.Services = []Service{s, other}
		},
		"service tcp 10.9.0.100:80: sense": func(p *Plan) {
			p.Services = []Service{{Proto: TCP, VIP: vips("10.9.0.100")[0], Port: 80}}
		},
	} {
		p := Plan{VIPs: vips("10.9.0.100"), Buckets: 256, Default: Division{Sense: SrcPort}}
		change(&p)
		if _, err := NewDivider(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// The shape tells plans apart that decide a packet differently, and no others.
func TestShape(t *testing.T) {
	service := func(vip string, port uint16, bits int) Service {
		return Service{VIP: vips(vip)[0], Port: port, Division: Division{Sense: SrcAddr, Bits4: bits}}
	}
	plan := func() Plan {
		return Plan{
			VIPs: vips("10.9.0.100", "10.9.1.0/24", "2001:db8::100"), Buckets: 256, Seed: 7, Default: Division{Sense: SrcPort},
			Services: []Service{service("10.9.0.100", 80, 24), service("10.9.0.100", 81, 24), service("10.9.1.0/24", 0, 16)},
		}
	}
	shape := func(p Plan) string {
		d, err := NewDivider(p)
		if err != nil {
			t.Fatal(err)
		}
		return d.Shape()
	}
	same := map[string]func(*Plan){
		"order of addresses": func(p *Plan) { slices.Reverse(p.VIPs) },
		"order of services":  func(p *Plan) { slices.Reverse(p.Services) },
		"said twice":         func(p *Plan) { p.Services = append(p.Services, p.Services...) },
		"protocols apart": func(p *Plan) {
			for _, proto := range Ported {
				s := p.Services[0]
				s.Proto = proto
				p.Services = append(p.Services, s)
			}
			p.Services = p.Services[1:]
		},
		"netmask of all bits": func(p *Plan) {
			for i := range p.Services {
				p.Services[i].Bits6 = 128
			}
		},
	}
	for what, change := range same {
		p := plan()
		if change(&p); shape(p) != shape(plan()) {
			t.Errorf("%s: %s is not %s", what, shape(p), shape(plan()))
		}
	}
	other := map[string]func(*Plan){
		"address": func(p *Plan) { p.VIPs = append(p.VIPs, vips("10.9.0.101")...) },
		"buckets": func(p *Plan) { p.Buckets = 128 },
		"seed":    func(p *Plan) { p.Seed++ },
		"default": func(p *Plan) { p.Default.Sense = DstPort },
		"method":  func(p *Plan) { p.Default.Method = ByBlock },
		"service": func(p *Plan) { p.Services = p.Services[1:] },
		"port":    func(p *Plan) { p.Services[1].Port = 82 },
		"netmask": func(p *Plan) { p.Services[2].Bits4 = 17 },
		"network": func(p *Plan) { p.Services[2].VIP = vips("10.9.1.0/25")[0] },
	}
	for what, change := range other {
		p := plan()
		if change(&p); shape(p) == shape(plan()) {
			t.Errorf("another %s: %s too", what, shape(p))
		}
	}
}
