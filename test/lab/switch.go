package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The switch's bridges: all ports are on the first until a split.
const (
	nearBridge = "br0"
	farBridge  = "br1"
)

// newSwitch makes a namespace with two bridges that flood multicast, as an
// unmanaged switch does. Each node has a port of its name.
func newSwitch() (*namespace, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	err = ns.do(func() error {
		for _, name := range []string{nearBridge, farBridge} {
			if err := addBridge(name); err != nil {
				return fmt.Errorf("bridge %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		ns.release()
		return nil, err
	}
	return ns, nil
}

func addBridge(name string) error {
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

// plug connects a node that has just got power.
func (l *Lab) plug(n *Node, ns *namespace) error {
	l.mu.Lock()
	far := l.half[n.Name]
	l.mu.Unlock()
	return l.fabric.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.Name
		port := &netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         Interface,
			PeerHardwareAddr: n.MAC,
			PeerNamespace:    netlink.NsFd(ns.net.Fd()),
		}
		if err := netlink.LinkAdd(port); err != nil {
			return fmt.Errorf("plug into the switch: %w", err)
		}
		if err := setBridge(n.Name, far); err != nil {
			return err
		}
		if l.Topology.NoFlood {
			if err := netlink.LinkSetFlood(port, false); err != nil {
				return fmt.Errorf("port %s: flood off: %w", n.Name, err)
			}
		}
		return netlink.LinkSetUp(port)
	})
}

// setBridge moves a port to one half of the switch.
func setBridge(port string, far bool) error {
	name := nearBridge
	if far {
		name = farBridge
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	bridge, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetMasterByIndex(link, bridge.Attrs().Index); err != nil {
		return fmt.Errorf("port %s to %s: %w", port, name, err)
	}
	return nil
}

// setPort sets a node's port up or down.
func (l *Lab) setPort(n *Node, up bool) error {
	err := l.fabric.do(func() error {
		link, err := netlink.LinkByName(n.Name)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
	if err != nil {
		return fmt.Errorf("port %s: %w", n.Name, err)
	}
	return nil
}

// waitUnplugged waits until the kernel has destroyed a node's namespace: only
// then does its end of the cable vanish, and with it the switch's port.
func (l *Lab) waitUnplugged(n *Node, ns *namespace) error {
	return eventually("the kernel to destroy its namespace", func() error {
		return l.fabric.do(func() error {
			_, err := netlink.LinkByName(n.Name)
			var gone netlink.LinkNotFoundError
			switch {
			case errors.As(err, &gone):
				return nil
			case err != nil:
				return err
			}
			return fmt.Errorf("held by %s", strings.Join(holders(ns.inode), ", "))
		})
	})
}

// holders names the threads and descriptors that keep a namespace alive.
func holders(inode uint64) []string {
	want := fmt.Sprintf("net:[%d]", inode)
	var found []string
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, _ := filepath.Glob(pattern) // the patterns are well formed
		for _, link := range links {
			if got, err := os.Readlink(link); err == nil && got == want {
				found = append(found, link)
			}
		}
	}
	if found == nil {
		return []string{"a socket, or the kernel's own work"}
	}
	return found
}

// Split cuts the switch in two: the named nodes are on one half, all others on
// the other. Links stay up, as when a cable between two switches breaks.
func (l *Lab) Split(nodes ...*Node) error {
	far := map[string]bool{}
	for _, n := range nodes {
		far[n.Name] = true
	}
	return l.divide(far)
}

// Heal joins the halves again.
func (l *Lab) Heal() error { return l.divide(map[string]bool{}) }

func (l *Lab) divide(far map[string]bool) error {
	l.mu.Lock()
	was := l.half
	l.half = far
	l.mu.Unlock()
	return l.fabric.do(func() error {
		for _, n := range l.Nodes() {
			if was[n.Name] == far[n.Name] || !n.Running() {
				continue
			}
			if err := setBridge(n.Name, far[n.Name]); err != nil {
				return err
			}
		}
		return nil
	})
}

// FDBEntry is an address that the switch learned.
type FDBEntry struct {
	MAC  net.HardwareAddr
	Port string // the node's name
}

// SwitchFDB lists the addresses that the switch learned.
func (l *Lab) SwitchFDB() ([]FDBEntry, error) {
	var entries []FDBEntry
	err := l.fabric.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, link := range links {
			names[link.Attrs().Index] = link.Attrs().Name
		}
		neighbours, err := netlink.NeighList(0, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			// Permanent entries are the bridge's own addresses.
			if n.State&netlink.NUD_PERMANENT == 0 && n.MasterIndex != 0 {
				entries = append(entries, FDBEntry{n.HardwareAddr, names[n.LinkIndex]})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("switch table: %w", err)
	}
	slices.SortFunc(entries, func(a, b FDBEntry) int { return strings.Compare(a.Port, b.Port) })
	return entries, nil
}

func (l *Lab) describeSwitch() (string, error) {
	entries, err := l.SwitchFDB()
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&text, "%v %s\n", e.MAC, e.Port)
	}
	return text.String(), nil
}
