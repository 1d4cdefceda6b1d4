package testnet

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

// A LAN is a bridge with nodes on it.
type LAN struct {
	Nodes []Namespace

	t      *testing.T
	bridge Namespace
}

// NewLAN makes a LAN of so many nodes, all plugged in.
func NewLAN(t *testing.T, nodes int) *LAN {
	t.Helper()
	l := &LAN{t: t, bridge: NewNamespace(t)}
	h := Handle(t, l.bridge)
	must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	Up(t, h, "br0")
	for i := range nodes {
		ns := NewNamespace(t)
		Up(t, Handle(t, ns), "lo")
		l.Nodes = append(l.Nodes, ns)
		l.Plug(i)
	}
	return l
}

// Plug connects node i by its eth0, as 10.97.0.i+1 and 2001:db8:97::i+1.
func (l *LAN) Plug(i int) {
	t := l.t
	t.Helper()
	h, port := Handle(t, l.bridge), fmt.Sprintf("port%d", i)
	Cable(t, h, port, l.Nodes[i], "eth0")
	br, err := h.LinkByName("br0")
	must(t, err)
	p, err := h.LinkByName(port)
	must(t, err)
	must(t, h.LinkSetMaster(p, br))
	Up(t, h, port)
	n := Handle(t, l.Nodes[i])
	Up(t, n, "eth0", fmt.Sprintf("10.97.0.%d/24", i+1), fmt.Sprintf("2001:db8:97::%d/64", i+1))
	// The bridge forwards what comes by a port once the kernel's link watch has
	// seen the carrier, which takes up to a second (net/core/link_watch.c).
	Await(t, "carrier of "+port, func() bool { return carries(t, h, port) && carries(t, h, "br0") && carries(t, n, "eth0") })
}

func carries(t *testing.T, h *netlink.Handle, name string) bool {
	t.Helper()
	link, err := h.LinkByName(name)
	must(t, err)
	return link.Attrs().OperState == netlink.OperUp
}

// Cable makes a link between h's namespace and another. Both ends are down.
func Cable(t *testing.T, h *netlink.Handle, here string, there Namespace, name string) {
	t.Helper()
	must(t, h.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: name, PeerNamespace: netlink.NsFd(int(there)),
	}))
}
