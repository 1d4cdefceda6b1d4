package lab

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// tunnel lets a real server unpack IPIP from any director. The kernel makes
// tunl0 in each namespace when its module is there.
func (n *Node) tunnel() error {
	if _, err := n.Run(n.lab.ctx, "modprobe", "ipip"); err != nil {
		return err
	}
	for _, name := range []string{"all", "tunl0"} {
		if err := n.Sysctl("net.ipv4.conf."+name+".rp_filter", "0"); err != nil {
			return err
		}
	}
	return n.Do(func() error {
		link, err := netlink.LinkByName("tunl0")
		if err != nil {
			return fmt.Errorf("tunl0: %w", err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("tunl0 up: %w", err)
		}
		return nil
	})
}

// routeThroughGateway sends a real server's packets for clients through the
// gateway, though they share its LAN.
func (l *Lab) routeThroughGateway(r *Node) error {
	if err := r.Sysctl("net.ipv4.conf.all.accept_redirects", "0"); err != nil {
		return err
	}
	return r.Do(func() error {
		for _, c := range l.Clients {
			route := &netlink.Route{
				Dst: &net.IPNet{IP: c.Addr.AsSlice(), Mask: net.CIDRMask(32, 32)},
				Gw:  l.Topology.Gateway.AsSlice(),
			}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("route to %v through %v: %w", c.Addr, l.Topology.Gateway, err)
			}
		}
		return nil
	})
}
