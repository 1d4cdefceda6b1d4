package partition

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// LVS-NAT: what the real servers send passes a director, too. It must be the
// one that has the flow, since the others do not know the connection and would
// send it on with the real server's own address, which resets it.
//
// A packet from a real server is a reply if its source port is one that a
// virtual service forwards to, and is then judged in the mirrored sense: its
// destination is the client. All else is a real server's own business, and is
// judged by the remote address alone. So is what comes back to the address that
// it is masqueraded to, which needs a Service for that.

// An Inside is the real servers' side of a share.
type Inside struct {
	Networks []netip.Prefix // of real servers
	Replies  []Reply
}

// A Reply says how what real servers send from a port is divided: as what
// clients send to its service.
type Reply struct {
	Proto uint8 // one of Ported
	Port  uint16
	Division
}

// A ReplyPort is what names a Reply.
type ReplyPort struct {
	Proto uint8
	Port  uint16
}

// Outward is how a real server's own flows are divided, where the remote side
// is the client: AddrBucket says the same.
var Outward = Division{Sense: SrcAddr, Method: ByHash}

var errNoNetworks = errors.New("inside: no networks of real servers given")

func (p *Plan) checkInside() error {
	if p.Inside == nil {
		return nil
	}
	in := &Inside{slices.Clone(p.Inside.Networks), slices.Clone(p.Inside.Replies)}
	p.Inside = in
	if len(in.Networks) == 0 {
		return errNoNetworks
	}
	for i, n := range in.Networks {
		if !n.IsValid() || n.Addr().Is4In6() {
			return fmt.Errorf("inside: network %v: use one such as 192.168.6.0/24", n)
		}
		in.Networks[i] = n.Masked()
		for _, m := range in.Networks[:i] {
			if m.Overlaps(n) {
				return fmt.Errorf("inside: networks %v and %v overlap: name each address once", m, n)
			}
		}
	}
	if err := clientOnly(p.Default); err != nil {
		return err
	}
	for _, s := range p.Services {
		if err := clientOnly(s.Division); err != nil {
			return fmt.Errorf("service %v: %w", s, err)
		}
	}
	slices.SortFunc(in.Replies, func(a, b Reply) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	for i, r := range in.Replies {
		if !slices.Contains(Ported, r.Proto) || r.Port == 0 {
			return fmt.Errorf("inside: replies of protocol %d from port %d: use TCP, UDP or SCTP, and a port", r.Proto, r.Port)
		}
		if i > 0 && in.Replies[i-1].Proto == r.Proto && in.Replies[i-1].Port == r.Port {
			return fmt.Errorf("inside: replies from %s port %d are named twice", ProtoName(r.Proto), r.Port)
		}
		if err := errors.Join(r.Division.check(), clientOnly(r.Division)); err != nil {
			return fmt.Errorf("inside: replies from %s port %d: %w", ProtoName(r.Proto), r.Port, err)
		}
	}
	return nil
}

// clientOnly refuses a division that a real server's reply does not show.
func clientOnly(d Division) error {
	if d.Sense&(DstAddr|DstPort) != 0 {
		return fmt.Errorf("sense %v: a real server's reply does not show which virtual address and port it belongs to; "+
			"under LVS-NAT use src-port, src-addr or both", d.Sense)
	}
	return nil
}

// isInside reports whether a is an address of the real servers' networks.
func (p *Plan) isInside(a netip.Addr) bool {
	return p.Inside != nil && slices.ContainsFunc(p.Inside.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// fromInside judges what a real server sends.
func (d *Divider) fromInside(p *Packet) Decision {
	class := Open
	switch p.Proto {
	case TCP, SCTP:
		if !p.Opens {
			class = Rest
		}
		fallthrough
	case UDP:
		if p.Short {
			return Decision{Class: Malformed, Bucket: -1, Division: ByAddress}
		}
		if i, ok := d.Replies[ReplyPort{p.Proto, p.SrcPort}]; ok {
			return d.reply(i, class, netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort))
		}
	case protoICMP, protoICMPv6:
		// It complains of what a client had sent.
		q := &p.Quote
		if i, ok := d.Replies[ReplyPort{q.Proto, q.DstPort}]; ok && q.Readable {
			decision := d.reply(i, Open, netip.AddrPortFrom(q.Src, q.SrcPort), netip.AddrPortFrom(q.Dst, q.DstPort))
			decision.Quoted = true
			return decision
		}
	}
	return Decision{Class: class, Bucket: d.AddrBucket(p.Dst), Division: ByAddress}
}

func (d *Divider) reply(division int, class Class, client, server netip.AddrPort) Decision {
	return Decision{Class: class, Bucket: d.Bucket(d.Divisions[division], client, server), Division: division}
}

// shape is the part of Shape that says how replies are divided.
func (in *Inside) shape() string {
	if in == nil {
		return ""
	}
	var b strings.Builder
	networks := slices.Clone(in.Networks)
	slices.SortFunc(networks, comparePrefixes)
	fmt.Fprintf(&b, "; inside %v", networks)
	for _, r := range in.Replies {
		fmt.Fprintf(&b, "; %d %d %v", r.Proto, r.Port, r.Division)
	}
	return b.String()
}
