package lan

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// label marks the IPv4 addresses on lo that are ours. IPv6 ones have no label:
// the state file knows them.
const label = "lo:saru"

// routeProto marks the routes that are ours (proto of ip-route(8)): a number
// that /etc/iproute2/rt_protos gives to nobody.
const routeProto = 201

// addLocal makes the virtual addresses this host's: single ones as addresses
// of lo, networks as local routes. What the operator has put there stays his.
func (l *LAN) addLocal() error {
	lo, err := l.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lan: interface lo: %w", err)
	}
	have, err := l.handle.AddrList(lo, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("lan: list addresses of lo: %w", err)
	}
	for _, vip := range l.cfg.VIPs {
		i := slices.IndexFunc(have, func(a netlink.Addr) bool { return vip.IsSingleIP() && a.IP.Equal(vip.Addr().AsSlice()) })
		if i >= 0 && have[i].Label != label && !slices.Contains(l.state.Local, vip) {
			continue
		}
		if err := l.state.own(vip); err != nil {
			return err
		}
		if i >= 0 {
			continue
		}
		if !vip.IsSingleIP() {
			err = l.handle.RouteAdd(localRoute(lo, vip))
			if errors.Is(err, unix.EEXIST) {
				err = l.adopt(lo, vip)
			}
		} else {
			err = l.handle.AddrAdd(lo, loAddr(vip))
		}
		if err != nil {
			return fmt.Errorf("lan: add %v to lo: %w%s", vip, err, hintFor(vip))
		}
	}
	return nil
}

// hintFor is the likely cure of a virtual address that lo does not take.
func hintFor(vip netip.Prefix) string {
	if vip.Addr().Is4() {
		return ""
	}
	return "; is IPv6 switched off there?"
}

// adopt finds out whose a local route is that was there before.
func (l *LAN) adopt(lo netlink.Link, vip netip.Prefix) error {
	have, err := l.handle.RouteListFiltered(familyOf(vip), localRoute(lo, vip), netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err == nil && !slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Protocol == routeProto }) {
		l.state.disown(vip)
	}
	return err
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// loAddr is a virtual address as it is on lo. An IPv6 one is deprecated, which
// keeps the kernel from choosing it as the source of this host's own
// connections (RFC 6724 section 5, rule 3), and is never tentative: all
// directors have it.
func loAddr(vip netip.Prefix) *netlink.Addr {
	if vip.Addr().Is4() {
		return &netlink.Addr{IPNet: ipNet(vip), Label: label, Scope: unix.RT_SCOPE_UNIVERSE}
	}
	return &netlink.Addr{IPNet: ipNet(vip), Flags: unix.IFA_F_NODAD, ValidLft: math.MaxUint32, PreferedLft: 0}
}

func localRoute(lo netlink.Link, vip netip.Prefix) *netlink.Route {
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(vip), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: unix.RT_SCOPE_HOST, Protocol: routeProto, Family: familyOf(vip),
	}
}

// removeLocal takes back what addLocal did, now or before a crash.
func (l *LAN) removeLocal() error {
	if l.handle == nil || len(l.state.Local) == 0 {
		return nil
	}
	lo, err := l.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lan: interface lo: %w", err)
	}
	var errs []error
	for _, vip := range l.state.Local {
		if vip.IsSingleIP() {
			err = l.handle.AddrDel(lo, loAddr(vip))
		} else {
			err = l.handle.RouteDel(localRoute(lo, vip))
		}
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("lan: remove %v from lo: %w", vip, err))
		}
	}
	l.state.Local = nil
	return errors.Join(errs...)
}
