package director

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"saru/ipvs"
	"saru/partition"
)

const ftpPort = 21

// divisions returns the services of a share that cannot be divided as the
// share is, because all flows of a client to them must meet one director: the
// kernel's backup ignores a persistence template with another real server, so
// two directors that each make one keep both for ever. The result depends only
// on what all directors have alike, not on the order of all.
//
//   - A persistent service: by the client's address under its netmask.
//   - FTP: its data connections have other ports, so all of TCP to the address,
//     by the client's address. Other services of the address that are named
//     keep their own division.
//   - SIP: by address too. Calls that come through several proxies are
//     not kept together: no field of a packet says that they are one call.
//   - A persistent firewall mark: who is marked the mangle table says, later
//     than the share is judged. So all of the family's addresses.
func (s *Settings) divisions(all []ipvs.Service) []partition.Service {
	d := deriver{settings: s}
	for _, v := range all {
		d.add(v)
	}
	d.keepOthers(all)
	d.underMarks()
	return d.sorted()
}

type deriver struct {
	settings *Settings
	out      []partition.Service
}

// add adds what one service asks for.
func (d *deriver) add(v ipvs.Service) {
	persistent := v.Flags&ipvs.ServicePersistent != 0
	switch {
	case v.FWMark != 0 && persistent:
		for _, vip := range d.settings.VIPs {
			if vip.Addr().Is4() == (v.Family == unix.AF_INET) {
				d.put(partition.Service{VIP: vip}, v, "firewall mark %d is persistent in IPVS%s, and its packets are marked after they are judged", v.FWMark, maskText(v))
			}
		}
	case v.FWMark != 0 || !d.ours(v.Addr.Addr()):
	case v.PEName == "sip":
		d.put(partition.Service{VIP: one(v)}, v, "%s is SIP in IPVS: its calls use other ports", nameOf(v))
	case persistent:
		d.put(partition.Service{Proto: v.Protocol, VIP: one(v), Port: v.Addr.Port()}, v, "%s is persistent in IPVS%s", nameOf(v), maskText(v))
	}
	if isFTP(v) && d.ours(v.Addr.Addr()) {
		d.put(partition.Service{Proto: partition.TCP, VIP: one(v)}, v, "%s is FTP in IPVS: its data connections use other ports", nameOf(v))
		if !persistent {
			d.put(partition.Service{Proto: partition.TCP, VIP: one(v), Port: ftpPort}, v, "%s is FTP in IPVS", nameOf(v))
		}
	}
}

func isFTP(v ipvs.Service) bool {
	return v.FWMark == 0 && v.Protocol == partition.TCP && v.Addr.Port() == ftpPort
}

func (d *deriver) ours(a netip.Addr) bool {
	return slices.ContainsFunc(d.settings.VIPs, func(v netip.Prefix) bool { return v.Contains(a) })
}

func one(v ipvs.Service) netip.Prefix {
	return netip.PrefixFrom(v.Addr.Addr(), v.Addr.Addr().BitLen())
}

// put adds a service that is divided by the client's address under v's
// netmask. Where two ask for one place the coarser serves both.
func (d *deriver) put(at partition.Service, v ipvs.Service, why string, args ...any) {
	at.Division = partition.Division{Sense: partition.SrcAddr, Method: d.settings.Method}
	if v.Flags&ipvs.ServicePersistent != 0 {
		at.Bits4, at.Bits6 = prefixBits(v)
	}
	if d.settings.Inside != nil {
		at.Method = partition.ByHash // as what real servers open by themselves
	}
	at.Why = fmt.Sprintf(why, args...)
	i := slices.IndexFunc(d.out, func(o partition.Service) bool { return o.Proto == at.Proto && o.VIP == at.VIP && o.Port == at.Port })
	if i < 0 {
		d.out = append(d.out, at)
		return
	}
	was := &d.out[i]
	if coarser(at.Division, was.Division) || !coarser(was.Division, at.Division) && at.Why < was.Why {
		*was = at
	}
}

// coarser reports whether a puts more clients together than b.
func coarser(a, b partition.Division) bool {
	return a.Bits(true) < b.Bits(true) || a.Bits(false) < b.Bits(false)
}

// keepOthers gives the services that are not special the share's own division,
// where a rule for all ports of their address would take them: but not below a
// persistent mark, which may gather them.
func (d *deriver) keepOthers(all []ipvs.Service) {
	for _, v := range all {
		if v.FWMark != 0 || !d.ours(v.Addr.Addr()) || v.Addr.Port() == 0 || isFTP(v) {
			continue
		}
		place := func(o partition.Service) bool {
			return o.VIP == one(v) && o.Proto == v.Protocol && o.Port == v.Addr.Port()
		}
		wide := func(o partition.Service) bool {
			return o.VIP == one(v) && o.Port == 0 && o.Proto == partition.TCP && v.Protocol == partition.TCP
		}
		marked := func(o partition.Service) bool { return o.Proto == 0 && o.Port == 0 && o.VIP.Contains(v.Addr.Addr()) }
		if slices.ContainsFunc(d.out, wide) && !slices.ContainsFunc(d.out, place) && !slices.ContainsFunc(d.out, marked) {
			own := partition.Division{Sense: d.settings.Sense, Method: d.settings.Method}
			d.out = append(d.out, partition.Service{
				Proto: v.Protocol, VIP: one(v), Port: v.Addr.Port(), Division: own,
				Why: nameOf(v) + " is no FTP, so the share's sense is kept",
			})
		}
	}
}

// sorted returns the services in an order of their own, without those that
// change nothing.
func (d *deriver) sorted() []partition.Service {
	slices.SortFunc(d.out, func(a, b partition.Service) int {
		return cmp.Or(a.VIP.Addr().Compare(b.VIP.Addr()), cmp.Compare(a.VIP.Bits(), b.VIP.Bits()), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	own := partition.Division{Sense: d.settings.Sense, Method: d.settings.Method}
	if !slices.ContainsFunc(d.out, func(s partition.Service) bool { return s.Division != own }) {
		return nil
	}
	return d.out
}

// underMarks makes what a persistent mark may gather at least as coarse as the
// mark's own division.
func (d *deriver) underMarks() {
	for i := range d.out {
		for _, m := range d.out {
			if o := &d.out[i]; m.Proto == 0 && m.Port == 0 && m.VIP.Contains(o.VIP.Addr()) && coarser(m.Division, o.Division) {
				o.Division = m.Division
			}
		}
	}
}

// prefixBits returns how many bits of a client's address count for a service:
// all, as 0, unless it has a netmask of its family.
func prefixBits(v ipvs.Service) (bits4, bits6 int) {
	switch v.Family {
	case unix.AF_INET:
		if n := bits.OnesCount32(v.Netmask); n > 0 && n < 32 {
			return n, 0
		}
	case unix.AF_INET6:
		if v.Netmask > 0 && v.Netmask < 128 {
			return 0, int(v.Netmask)
		}
	}
	return 0, 0
}

func maskText(v ipvs.Service) string {
	b4, b6 := prefixBits(v)
	if b4|b6 == 0 {
		return ""
	}
	return fmt.Sprintf(" with netmask /%d", b4|b6)
}

func nameOf(v ipvs.Service) string {
	return partition.Service{Proto: v.Protocol, VIP: one(v), Port: v.Addr.Port()}.String()
}

// serviceStatus lists the services that are not divided as the share is.
func serviceStatus(s *Settings) []ServiceStatus {
	own := partition.Division{Sense: s.Sense, Method: s.Method}
	list := []ServiceStatus{}
	for _, v := range s.Services {
		if v.Division != own {
			list = append(list, ServiceStatus{v.String(), v.Division.String(), v.Why})
		}
	}
	return list
}
