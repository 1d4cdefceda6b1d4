package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unpacked are the interfaces that packets of a tunnel come out of. The kernel
// makes them in each namespace when their module is there. GUE packs IPIP into
// UDP, so what comes out of it is IPIP's.
var unpacked = map[Forward]struct {
	modules []string
	device  string
}{
	IPIP: {[]string{"ipip"}, "tunl0"},
	GUE:  {[]string{"ipip", "fou"}, "tunl0"},
	GRE:  {[]string{"ip_gre"}, "gre0"},
}

// tunnel lets a real server unpack what any director has packed.
func (n *Node) tunnel(f Forward) error {
	how := unpacked[f]
	for _, m := range how.modules {
		if _, err := n.Run(n.lab.ctx, "modprobe", m); err != nil {
			return err
		}
	}
	for _, name := range []string{"all", how.device} {
		if err := n.Sysctl("net.ipv4.conf."+name+".rp_filter", "0"); err != nil {
			return err
		}
	}
	if f == GUE {
		if _, err := n.Run(n.lab.ctx, "ip", "fou", "add", "port", guePort, "gue"); err != nil {
			return err
		}
	}
	return n.Do(func() error {
		link, err := netlink.LinkByName(how.device)
		if err != nil {
			return fmt.Errorf("%s: %w", how.device, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s up: %w", how.device, err)
		}
		return nil
	})
}

// gatewayTable is the routing table of what real servers send from their own
// address.
const gatewayTable = 100

// routeThroughGateway sends what a real server says to clients from its own
// address through the gateway, though they share its LAN.
func (l *Lab) routeThroughGateway(r *Node) error {
	if err := r.Sysctl("net.ipv4.conf.all.accept_redirects", "0"); err != nil {
		return err
	}
	return r.Do(func() error {
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Src = unix.AF_INET, gatewayTable, hostNet(r.Addr)
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule for what comes from %v: %w", r.Addr, err)
		}
		for _, c := range l.Clients {
			route := &netlink.Route{Dst: hostNet(c.Addr), Gw: l.Topology.Gateway.AsSlice(), Table: gatewayTable}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("route to %v through %v: %w", c.Addr, l.Topology.Gateway, err)
			}
		}
		return nil
	})
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}
