package lan

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Who has an address answers, and nobody else does.
func TestProbe(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		far, err := netns.New()
		must(t, err)
		defer far.Close()
		// This thread is in the new namespace now: the neighbour's.
		link := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0"}
		link.Name, link.HardwareAddr = "probe", net.HardwareAddr(asker[:])
		near, err := netns.New()
		must(t, err)
		defer near.Close()
		must(t, netlink.LinkAdd(link))
		must(t, netlink.LinkSetNsFd(link, int(far)))
		must(t, netns.Set(far))
		for _, a := range []string{"10.9.0.100/24", "2001:db8:9::100/64"} {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = 0x02 // IFA_F_NODAD
			must(t, netlink.AddrAdd(link, addr))
		}
		must(t, netlink.LinkSetUp(link))
		must(t, netns.Set(near))
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.LinkSetUp(eth0))
		other := netip.MustParseAddr("10.9.0.101")
		for end := time.Now().Add(10 * time.Second); ; {
			found, err := Probe(t.Context(), "eth0", []netip.Addr{vip, vip6, other}, 300*time.Millisecond)
			must(t, err)
			if found[other] != nil {
				t.Errorf("%v answers for %v, which nobody has", found[other], other)
			}
			if found[vip].String() == net.HardwareAddr(asker[:]).String() && found[vip6].String() == found[vip].String() {
				return
			}
			if time.Now().After(end) { // the link comes up in its own time
				t.Errorf("found %v", found)
				return
			}
		}
	})
}
