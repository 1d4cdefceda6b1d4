package partition

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Flow is what a client sends to a virtual address. The ports are 0 where
// the protocol has none.
type Flow struct {
	Proto       uint8
	Client, VIP netip.AddrPort
}

// protoNumbers are the names that ParseFlow takes besides numbers.
var protoNumbers = map[string]uint8{
	"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": protoICMP, "icmp6": protoICMPv6, "icmpv6": protoICMPv6,
	"ipv6-icmp": protoICMPv6, "gre": 47, "esp": 50, "ah": 51, "ipip": 4,
}

// ParseFlow reads a flow: a protocol by name or IANA number, and two ends,
// with ports where the protocol has them ("198.51.100.7:40312",
// "[2001:db8::7]:40312"), else without. "icmp" is that of the ends' family.
func ParseFlow(proto, client, vip string) (f Flow, err error) {
	if f.Proto, err = parseProto(proto); err != nil {
		return f, err
	}
	for _, end := range []struct {
		text string
		to   *netip.AddrPort
	}{{client, &f.Client}, {vip, &f.VIP}} {
		if *end.to, err = parseEnd(proto, end.text, slices.Contains(Ported, f.Proto)); err != nil {
			return f, err
		}
	}
	switch is4 := f.Client.Addr().Is4(); {
	case is4 != f.VIP.Addr().Is4():
		return f, fmt.Errorf("%v and %v are of different families", f.Client.Addr(), f.VIP.Addr())
	case f.Proto == protoICMP && !is4:
		f.Proto = protoICMPv6
	case f.Proto == protoICMPv6 && is4:
		return f, fmt.Errorf("protocol %q is that of IPv6: use icmp between IPv4 addresses", proto)
	}
	return f, nil
}

func parseProto(text string) (uint8, error) {
	if p, ok := protoNumbers[strings.ToLower(text)]; ok {
		return p, nil
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("protocol %q: use tcp, udp, sctp, icmp, or a number from 1 to 255", text)
	}
	return uint8(n), nil
}

func parseEnd(proto, text string, ported bool) (netip.AddrPort, error) {
	if ported {
		end, err := netip.ParseAddrPort(text)
		if err != nil || end.Addr().Zone() != "" {
			return end, fmt.Errorf("%q: use an address and a port, such as 198.51.100.7:40312 or [2001:db8::7]:40312", text)
		}
		return netip.AddrPortFrom(end.Addr().Unmap(), end.Port()), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q: use an address such as 198.51.100.7; %s has no ports", text, proto)
	}
	return netip.AddrPortFrom(a.Unmap(), 0), nil
}

// Flow returns the flow that a packet belongs to: of an ICMP error, the one
// that it quotes. Of a fragment, or of a packet that is cut short, only the
// addresses are right.
func (p *Packet) Flow() Flow {
	if q := &p.Quote; q.Readable {
		return Flow{q.Proto, netip.AddrPortFrom(q.Dst, q.DstPort), netip.AddrPortFrom(q.Src, q.SrcPort)}
	}
	return Flow{p.Proto, netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort)}
}

// String returns "tcp 198.51.100.7:40312 10.9.0.100:80", as ParseFlow reads it.
func (f Flow) String() string {
	if slices.Contains(Ported, f.Proto) {
		return fmt.Sprintf("%s %v %v", f.protocol(), f.Client, f.VIP)
	}
	return fmt.Sprintf("%s %v %v", f.protocol(), f.Client.Addr(), f.VIP.Addr())
}

func (f Flow) protocol() string {
	switch f.Proto {
	case protoICMP, protoICMPv6:
		return "icmp"
	}
	return ProtoName(f.Proto)
}

// Capture returns the filter, in the language of pcap-filter(7), that shows
// the flow and what answers it.
func (f Flow) Capture() string {
	return fmt.Sprintf("%s and (%s or %s)", f.captureProto(), oneWay(f.Client, f.VIP), oneWay(f.VIP, f.Client))
}

func (f Flow) captureProto() string {
	switch f.Proto {
	case TCP, UDP, SCTP:
		return ProtoName(f.Proto)
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmp6"
	}
	if f.VIP.Addr().Is4() {
		return fmt.Sprintf("ip proto %d", f.Proto)
	}
	return fmt.Sprintf("ip6 proto %d", f.Proto)
}

func oneWay(from, to netip.AddrPort) string {
	hosts := fmt.Sprintf("src host %v and dst host %v", from.Addr(), to.Addr())
	if from.Port() == 0 && to.Port() == 0 {
		return "(" + hosts + ")"
	}
	return fmt.Sprintf("(%s and src port %d and dst port %d)", hosts, from.Port(), to.Port())
}
