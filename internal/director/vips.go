package director

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"saru/internal/config"
)

// maxVIPs is how many virtual addresses and networks a share can have.
const maxVIPs = 64

// virtual reads virtual addresses and networks.
func virtual(key string, texts []string) ([]netip.Prefix, error) {
	if len(texts) > maxVIPs {
		return nil, config.Bad("%s has %d addresses; use at most %d", key, len(texts), maxVIPs)
	}
	var vips []netip.Prefix
	for _, t := range texts {
		v, err := virtualOne(key, t)
		if err != nil {
			return nil, err
		}
		for _, w := range vips {
			switch {
			case w == v:
				return nil, config.Bad("%s names %v twice; remove one", key, vipText(v))
			case w.Overlaps(v):
				return nil, config.Bad("%s: %v and %v overlap; name each address once", key, vipText(w), vipText(v))
			}
		}
		vips = append(vips, v)
	}
	return vips, notOwn(key, vips)
}

func virtualOne(key, text string) (netip.Prefix, error) {
	v, err := netip.ParsePrefix(text)
	if a, aerr := netip.ParseAddr(text); aerr == nil {
		v, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch a := v.Addr(); {
	case err != nil || a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast():
		return v, config.Bad("%s = %q: not an address that clients can use, such as \"10.9.0.100\" or \"2001:db8::100\", or a network", key, text)
	case v != v.Masked():
		return v, config.Bad("%s = %q: use the network %v, or the address %v", key, text, v.Masked(), a)
	case v.Bits() < 8:
		return v, config.Bad("%s = %q: too large; use a network of at least 8 bits", key, text)
	}
	return v, nil
}

// notOwn refuses virtual networks with an address of an interface in them: the
// network would be this host's alone, its neighbours out of reach.
func notOwn(key string, vips []netip.Prefix) error {
	if !slices.ContainsFunc(vips, func(v netip.Prefix) bool { return !v.IsSingleIP() }) {
		return nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, ia := range all {
		n, ok := ia.(*net.IPNet)
		if !ok {
			continue
		}
		b, _ := netip.AddrFromSlice(n.IP)
		for _, v := range vips {
			if !v.IsSingleIP() && v.Contains(b.Unmap()) {
				return config.Bad("%s = %q: this machine's own address %v is in the network; use one that holds virtual addresses only", key, v, b.Unmap())
			}
		}
	}
	return nil
}

// vipText names a virtual address, or a network.
func vipText(v netip.Prefix) string {
	if v.IsSingleIP() {
		return v.Addr().String()
	}
	return v.String()
}

// vipTexts names all of them.
func vipTexts(vips []netip.Prefix) []string {
	texts := make([]string, 0, len(vips))
	for _, v := range vips {
		texts = append(texts, vipText(v))
	}
	return texts
}

func vipList(vips []netip.Prefix) string { return strings.Join(vipTexts(vips), ", ") }
