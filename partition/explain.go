package partition

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// An Explanation says which bucket a flow falls into, and why. It is the same
// on every director that has the plan.
type Explanation struct {
	Flow    string `json:"flow"`
	Service string `json:"service"` // whose rule decides: "tcp 10.9.0.100:80"; "default"; "none" without ports
	Sense   string `json:"sense"`   // with the netmask, if any: "src-addr/24"
	Method  string `json:"method"`
	Bucket  int    `json:"bucket"`
	Rule    string `json:"rule"`
	Why     string `json:"why"`
	Capture string `json:"capture"` // pcap-filter(7)
}

// addresses are the virtual addresses and networks as people write them.
func (d *Divider) addresses() string {
	var all []string
	for _, v := range d.VIPs {
		if v.IsSingleIP() {
			all = append(all, v.Addr().String())
		} else {
			all = append(all, v.String())
		}
	}
	return strings.Join(all, ", ")
}

// Explain says how the first packet of a flow is judged. The error says that
// it is none for this plan.
func (d *Divider) Explain(f Flow) (Explanation, error) {
	if !d.IsVIP(f.VIP.Addr()) {
		return Explanation{}, fmt.Errorf("%v is no virtual address of this share, which has %s", f.VIP.Addr(), d.addresses())
	}
	p := Packet{
		Src: f.Client.Addr(), Dst: f.VIP.Addr(), Proto: f.Proto,
		SrcPort: f.Client.Port(), DstPort: f.VIP.Port(), Opens: true,
	}
	decision := d.Decide(&p)
	e := Explanation{Flow: f.String(), Bucket: decision.Bucket, Capture: f.Capture()}
	if decision.Division == ByAddress {
		e.Service, e.Sense, e.Method = "none", SrcAddr.String(), ByHash.String()
		e.Rule = "no ports: src-addr by hash"
		e.Why = fmt.Sprintf("protocol %d has no ports, so the source address alone decides; "+
			"an ICMP error that quotes a flow goes with that flow", f.Proto)
		return e, nil
	}
	division := d.Divisions[decision.Division]
	e.Sense, e.Method = division.Sense.String()+division.netmask(f.VIP.Addr().Is4()), division.Method.String()
	if s, ok := d.service(f); ok {
		e.Service = s.String()
		e.Why = "its share is configured so"
		if s.Why != "" {
			e.Why = s.Why
		}
	} else {
		e.Service = "default"
		e.Why = "no service asks for another sense than the share's"
	}
	e.Rule = fmt.Sprintf("%s: %v", e.Service, division)
	return e, nil
}

// netmask returns "/24" where a division does not count all of an address.
func (d Division) netmask(is4 bool) string {
	full := 128
	if is4 {
		full = 32
	}
	if bits := d.Bits(is4); d.Sense&SrcAddr != 0 && bits < full {
		return fmt.Sprintf("/%d", bits)
	}
	return ""
}

// service returns the service whose division a flow has. The services are in
// the order in which they count.
func (d *Divider) service(f Flow) (Service, bool) {
	i := slices.IndexFunc(d.Services, func(s Service) bool {
		return (s.Proto == 0 || s.Proto == f.Proto) && (s.Port == 0 || s.Port == f.VIP.Port()) && s.VIP.Contains(f.VIP.Addr())
	})
	if i < 0 {
		return Service{}, false
	}
	return d.Services[i], true
}

// DivisionOf returns how flows to a service are divided.
func (d *Divider) DivisionOf(proto uint8, vip netip.AddrPort) Division {
	return d.Divisions[d.division(proto, vip)]
}

// WhyOf returns what Explain says of a service that has a division, which need
// not be this plan's.
func (d *Divider) WhyOf(proto uint8, vip netip.AddrPort, has Division) string {
	if s, ok := d.service(Flow{Proto: proto, VIP: vip}); ok && s.Division == has {
		return s.Why
	}
	if has == d.Default {
		return "a virtual service, so the share's sense is kept"
	}
	return "it translates to a port that a service divided so translates to, too"
}
