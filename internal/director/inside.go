package director

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"saru/internal/config"
	"saru/ipvs"
	"saru/partition"
	"saru/partition/nft"
)

// maxInside is how many networks of real servers a share can have.
const maxInside = 16

// An Inside is the real servers' side of a share, under LVS-NAT.
type Inside struct {
	Interface string
	Address   netip.Addr // the real servers' gateway, which all directors are
	MAC       net.HardwareAddr
	Networks  []netip.Prefix
}

// inside reads [share.inside].
func (f *File) inside(s *Settings) (err error) {
	in := f.Share.Inside
	if in == nil {
		return nil
	}
	out := &Inside{Interface: in.Interface}
	switch {
	case len(s.VIPs) == 0:
		return config.Bad("share.inside: there is no share; name share.addresses, or remove the section")
	case !s.IPVS:
		return config.Bad("share.inside: LVS-NAT needs share.target = \"ipvs\"; remove the section, or change the target")
	case s.Sense&(partition.DstAddr|partition.DstPort) != 0:
		return config.Bad("share.sense = %q: a real server's reply does not show the virtual address and port; with share.inside use \"src-port\", \"src-addr\" or both", f.Share.Sense)
	}
	ifi, err := config.Interface("share.inside.interface", in.Interface)
	if err != nil {
		return err
	}
	if out.MAC, err = sharedMAC("share.inside.mac", cmp.Or(in.MAC, fmt.Sprintf("02:00:5e:00:02:%02x", s.ID)), ifi); err != nil {
		return err
	}
	if bytes.Equal(out.MAC, s.MAC) {
		return config.Bad("share.inside.mac = %q is share.mac, too; use another", out.MAC)
	}
	gateway, err := virtualOne("share.inside.address", in.Address)
	if err != nil || !gateway.IsSingleIP() {
		return config.Bad("share.inside.address = %q: not the real servers' gateway, such as \"192.168.6.1\"", in.Address)
	}
	out.Address = gateway.Addr()
	if len(in.Networks) == 0 || len(in.Networks) > maxInside {
		return config.Bad("share.inside.networks names %d networks; name the real servers', 1 to %d, such as \"192.168.6.0/24\"", len(in.Networks), maxInside)
	}
	for _, t := range in.Networks {
		n, err := virtualOne("share.inside.networks", t)
		if err != nil {
			return err
		}
		for _, v := range s.VIPs {
			if n.Overlaps(v) {
				return config.Bad("share.inside.networks = %q: the virtual address %s is in it; real servers and virtual addresses must not share a network", t, vipText(v))
			}
		}
		out.Networks = append(out.Networks, n)
	}
	if slices.ContainsFunc(s.VIPs, func(v netip.Prefix) bool { return v.Contains(out.Address) }) {
		return config.Bad("share.inside.address = %q is a virtual address of the share, too; use another", in.Address)
	}
	if !slices.ContainsFunc(s.VIPs, func(v netip.Prefix) bool { return v.IsSingleIP() && v.Addr().Is4() == out.Address.Is4() }) {
		return config.Bad("share.inside.address = %q: share.addresses has no single address of its family", in.Address)
	}
	s.Inside = out
	if _, err := partition.NewDivider(s.Plan()); err != nil {
		return config.Bad("share.inside: %v", err)
	}
	return nil
}

// sharedMAC reads a MAC that all directors have.
func sharedMAC(key, text string, ifi *net.Interface) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return nil, config.Bad("%s = %q: not a unicast Ethernet address such as \"02:00:5e:00:01:c9\"", key, text)
	}
	if bytes.Equal(mac, ifi.HardwareAddr) {
		return nil, config.Bad("%s = %q is the own address of %s; the shared MAC must belong to no interface", key, text, ifi.Name)
	}
	return mac, nil
}

// outward returns the virtual address that real servers' own flows leave with.
func (s *Settings) outward() netip.Addr {
	for _, v := range s.VIPs {
		if v.IsSingleIP() && v.Addr().Is4() == s.Inside.Address.Is4() {
			return v.Addr()
		}
	}
	return netip.Addr{} // refused when the configuration was read
}

// filter returns the inside of the filter's configuration.
func (s *Settings) filterInside() *nft.Inside {
	if s.Inside == nil {
		return nil
	}
	return &nft.Inside{Interface: s.Inside.Interface, MAC: s.Inside.MAC, From: s.outward()}
}

// planInside adds the inside to a plan: the gateway's address is one that
// exactly one director answers for.
func (s *Settings) planInside(p *partition.Plan) {
	if s.Inside == nil {
		return
	}
	p.VIPs = append(slices.Clone(p.VIPs), partition.Hosts(s.Inside.Address)...)
	p.Inside = &partition.Inside{Networks: s.Inside.Networks, Replies: s.Replies}
}

// An offered is a service in IPVS, and the ports at its real servers that it
// translates to.
type offered struct {
	ipvs.Service
	ports []uint16
}

// follow returns the settings that the services ask for.
func (s *Settings) follow(all []offered) *Settings {
	next := *s
	services := make([]ipvs.Service, len(all))
	for i, v := range all {
		services[i] = v.Service
	}
	next.Services, next.Replies = s.divisions(services), nil
	if s.Inside != nil {
		next.nat(all)
	}
	return &next
}

// nat makes both directions of LVS-NAT agree. A reply shows the port that it
// comes from, and not whose service it is: so services that translate to one
// port are divided alike. The ports of a service itself count too, so that a
// service whose last real server has gone does not change the shape. And what
// is no service's at the address that real servers' own flows leave with is
// divided by the remote address.
func (s *Settings) nat(all []offered) {
	base, err := partition.NewDivider(s.Plan())
	if err != nil {
		return // the shape stays as it is: the plan is refused again when it is used
	}
	own := make([]partition.Division, len(all))
	for i, v := range all {
		own[i] = partition.Outward // of a firewall mark
		if v.FWMark == 0 {
			own[i] = base.DivisionOf(v.Protocol, v.Addr)
		}
	}
	ports := map[partition.ReplyPort]partition.Division{}
	for changed := true; changed; { // divisions only get stronger, so this ends
		changed = false
		for i, v := range all {
			for _, p := range v.replyPorts(s) {
				was, known := ports[p]
				if known {
					own[i] = stronger(own[i], was)
				}
				ports[p] = own[i]
				changed = changed || !known || was != own[i]
			}
		}
	}
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(o partition.Service) bool { return o.Port != 0 })
	for i, v := range all {
		if v.FWMark == 0 && v.Addr.Port() != 0 && slices.ContainsFunc(s.VIPs, func(n netip.Prefix) bool { return n.Contains(v.Addr.Addr()) }) {
			s.Services = append(s.Services, partition.Service{
				Proto: v.Protocol, VIP: one(v.Service), Port: v.Addr.Port(), Division: own[i], Why: base.WhyOf(v.Protocol, v.Addr, own[i]),
			})
		}
	}
	wide := []netip.Addr{s.outward()}
	if slices.ContainsFunc(all, func(v offered) bool { return v.FWMark != 0 && len(v.ports) > 0 }) {
		wide = wide[:0]
		for _, v := range s.VIPs {
			if v.IsSingleIP() {
				wide = append(wide, v.Addr())
			}
		}
	}
	for _, a := range wide {
		at := partition.Service{VIP: partition.Hosts(a)[0], Division: partition.Outward, Why: "real servers' own flows leave with this address"}
		if !slices.ContainsFunc(s.Services, func(o partition.Service) bool { return o.Proto == 0 && o.Port == 0 && o.VIP == at.VIP }) {
			s.Services = append(s.Services, at)
		}
	}
	for p, d := range ports {
		s.Replies = append(s.Replies, partition.Reply{Proto: p.Proto, Port: p.Port, Division: d})
	}
	slices.SortFunc(s.Replies, func(a, b partition.Reply) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
}

// stronger returns a division that keeps together what either of two does.
func stronger(a, b partition.Division) partition.Division {
	switch {
	case a.Sense == b.Sense:
		a.Bits4, a.Bits6 = fewer(a.Bits4, b.Bits4), fewer(a.Bits6, b.Bits6)
	case b.Sense == partition.SrcAddr:
		return b
	}
	return a
}

// fewer returns the shorter of two prefixes; 0 is all of an address.
func fewer(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// replyPorts returns what the service's replies come from.
func (v *offered) replyPorts(s *Settings) (ports []partition.ReplyPort) {
	if v.FWMark == 0 && !slices.ContainsFunc(s.VIPs, func(n netip.Prefix) bool { return n.Contains(v.Addr.Addr()) }) {
		return nil
	}
	all := slices.Clone(v.ports)
	if v.FWMark == 0 {
		all = append(all, v.Addr.Port())
	}
	protos := []uint8{v.Protocol}
	if v.FWMark != 0 {
		protos = partition.Ported
	}
	for _, p := range all {
		for _, proto := range protos {
			if p != 0 {
				ports = append(ports, partition.ReplyPort{Proto: proto, Port: p})
			}
		}
	}
	return ports
}

// forwards refuses a kernel that would not forward what real servers send.
func (s *Settings) forwards() error {
	if s.Inside == nil {
		return nil
	}
	if err := nft.ProbeInside(); err != nil {
		return config.Bad("share.inside: %v", err)
	}
	key := "net/ipv4/ip_forward"
	if s.Inside.Address.Is6() {
		key = "net/ipv6/conf/all/forwarding"
	}
	b, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return fmt.Errorf("share.inside: %w", err)
	}
	if strings.TrimSpace(string(b)) == "0" {
		return config.Bad("share.inside: %s = 0, so that real servers' replies go nowhere; set it to 1", strings.ReplaceAll(key, "/", "."))
	}
	return nil
}
