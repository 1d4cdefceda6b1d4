package partition

import (
	"fmt"
	"net/netip"
)

// A Class says by which of a director's sets of buckets a packet is judged.
type Class uint8

const (
	// NotOurs: for no virtual address. The filters leave it alone.
	NotOurs Class = iota

	// Open packets may open a flow, and exactly one director takes them: TCP
	// SYN without ACK, SCTP INIT, and everything that is not TCP or SCTP.
	Open

	// Rest is all other TCP and SCTP. While a bucket changes hands both
	// directors may take it.
	Rest

	// Later: a fragment. Every director with a lease takes it; the datagram is
	// decided by its ports when it is whole.
	Later

	// Neighbour discovery is for the LAN, not for a flow: it stays as it came,
	// where packet sockets see it, and nobody's IP layer does.
	Neighbour

	// Malformed packets end before the fields that decide them. Nobody takes
	// them.
	Malformed
)

// String returns the class's name.
func (c Class) String() string {
	names := [...]string{"not ours", "open", "rest", "fragment", "neighbour discovery", "malformed"}
	if int(c) >= len(names) {
		return fmt.Sprintf("class %d", c)
	}
	return names[c]
}

// ByAddress is the Decision.Division of packets that only their source
// address decides.
const ByAddress = -1

// A Decision says who takes a packet: the director that has Bucket in its
// set for Class.
type Decision struct {
	Class    Class
	Bucket   int  // of Open and Rest; else -1
	Division int  // number in Divider.Divisions, or ByAddress
	Quoted   bool // decided by what an ICMP error quotes
}

// Decide judges a packet that was sent to the shared MAC, or, under LVS-NAT, to
// the one that the real servers send to. It is the one
// description of what the filters must do with it: they are tested against
// it, packet by packet. It does not allocate.
func (d *Divider) Decide(p *Packet) Decision {
	outside := d.IsVIP(p.Dst)
	switch {
	case !outside && !d.isInside(p.Src):
		return Decision{Class: NotOurs, Bucket: -1, Division: ByAddress}
	case p.Fragment:
		return Decision{Class: Later, Bucket: -1, Division: ByAddress}
	case !outside:
		return d.fromInside(p)
	}
	switch p.Proto {
	case TCP, SCTP:
		class := Rest
		if p.Opens {
			class = Open
		}
		return d.ported(p, class)
	case UDP:
		return d.ported(p, Open)
	case protoICMP, protoICMPv6:
		return d.icmp(p)
	}
	return d.byAddress(p)
}

func (d *Divider) ported(p *Packet, class Class) Decision {
	if p.Short {
		return Decision{Class: Malformed, Bucket: -1, Division: ByAddress}
	}
	client, vip := netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort)
	i := d.division(p.Proto, vip)
	return Decision{Class: class, Bucket: d.Bucket(d.Divisions[i], client, vip), Division: i}
}

// icmp judges an error by the flow that it quotes, so that the director that
// has the flow learns the path's MTU, and all else by the source address.
func (d *Divider) icmp(p *Packet) Decision {
	if p.Proto == protoICMPv6 && p.Src.Is6() && !p.Short && p.ICMP >= Neighbours[0] && p.ICMP <= Neighbours[1] {
		return Decision{Class: Neighbour, Bucket: -1, Division: ByAddress}
	}
	q := p.Quote
	if !q.Readable {
		return d.byAddress(p)
	}
	client, vip := netip.AddrPortFrom(q.Dst, q.DstPort), netip.AddrPortFrom(q.Src, q.SrcPort)
	i := d.division(q.Proto, vip)
	return Decision{Class: Open, Bucket: d.Bucket(d.Divisions[i], client, vip), Division: i, Quoted: true}
}

func (d *Divider) byAddress(p *Packet) Decision {
	return Decision{Class: Open, Bucket: d.AddrBucket(p.Src), Division: ByAddress}
}
