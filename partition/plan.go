package partition

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// The protocols whose packets have ports that a sense can name, by their IANA
// numbers.
const (
	TCP  = 6
	UDP  = 17
	SCTP = 132
)

// Ported are the protocols with ports.
var Ported = []uint8{TCP, UDP, SCTP}

// A Plan says how the flow space of a share is divided. All directors must
// have the same: it is the larger part of the share's shape.
type Plan struct {
	VIPs     []netip.Prefix // virtual addresses and networks, IPv4 and IPv6
	Buckets  int            // ValidBuckets
	Seed     uint32         // of the hash
	Default  Division       // of every service that Services does not name
	Services []Service
	Inside   *Inside // LVS-NAT only
}

// A Division is one way to divide flows.
type Division struct {
	Sense  Sense
	Method Method

	// How many leading bits of the client's address count, where the sense
	// names it: the persistence netmask of the service. 0: all.
	Bits4, Bits6 int
}

// String names the division: "src-addr/24/64 by hash".
func (d Division) String() string {
	mask := ""
	if d.Sense&SrcAddr != 0 && d.Bits4|d.Bits6 != 0 {
		mask = fmt.Sprintf("/%d/%d", cmp.Or(d.Bits4, 32), cmp.Or(d.Bits6, 128))
	}
	return d.Sense.String() + mask + " by " + d.Method.String()
}

func (d Division) check() error {
	switch {
	case !d.Sense.Valid():
		return fmt.Errorf("sense %d: name at least one field", d.Sense)
	case d.Method > ByBlock:
		return fmt.Errorf("method %d: use hash or block", d.Method)
	case d.Method == ByBlock && !d.Sense.single():
		return fmt.Errorf("sense %v: method block divides one field; name one, or use method hash", d.Sense)
	case d.Bits4 < 0 || d.Bits4 > 32:
		return fmt.Errorf("netmask of %d bits: use 1 to 32", d.Bits4)
	case d.Bits6 < 0 || d.Bits6 > 128:
		return fmt.Errorf("IPv6 netmask of %d bits: use 1 to 128", d.Bits6)
	}
	return nil
}

// Bits returns how many leading bits of a client's address of this family
// count.
func (d Division) Bits(is4 bool) int {
	if is4 {
		return cmp.Or(d.Bits4, 32)
	}
	return cmp.Or(d.Bits6, 128)
}

// A Service is one or many virtual services that are divided in a way of
// their own, because a client's flows to them must meet one director: a
// persistent service, FTP, SIP, all that a firewall mark gathers.
//
// Of several that match a packet the one with the longest VIP prefix counts;
// of those one with a port before one without, and then one with a protocol
// before one without.
type Service struct {
	Proto uint8        // TCP, UDP or SCTP; 0: all three
	VIP   netip.Prefix // an address, or a network; within one of Plan.VIPs
	Port  uint16       // 0: all
	Why   string       // what asks for it, for people; it decides nothing
	Division
}

func (s Service) check(vips []netip.Prefix) error {
	if s.Proto != 0 && !slices.Contains(Ported, s.Proto) {
		return fmt.Errorf("protocol %d has no ports: use TCP, UDP, SCTP or all", s.Proto)
	}
	if !s.VIP.IsValid() {
		return errors.New("no virtual address given")
	}
	for _, v := range vips {
		if v.Bits() <= s.VIP.Bits() && v.Contains(s.VIP.Addr()) {
			return s.Division.check()
		}
	}
	return fmt.Errorf("%v is no virtual address of this share", s.VIP)
}

// String names the service: "tcp 10.9.0.100:80", with * for all.
func (s Service) String() string {
	port := "*"
	if s.Port != 0 {
		port = fmt.Sprint(s.Port)
	}
	vip := s.VIP.String()
	if s.VIP.IsSingleIP() {
		vip = s.VIP.Addr().String()
	}
	if s.VIP.Addr().Is6() {
		vip = "[" + vip + "]"
	}
	return ProtoName(s.Proto) + " " + vip + ":" + port
}

// ProtoName returns "tcp", "udp" or "sctp", "*" for 0, else the number.
func ProtoName(proto uint8) string {
	switch proto {
	case 0:
		return "*"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(proto)
}

// An Endpoint is where a service listens; Port is 0 where all are meant.
type Endpoint struct {
	Proto uint8
	Addr  netip.Addr
	Port  uint16
}

// A Divider is a Plan made ready to decide packets. Its fields are what the
// filters build their rules from; they are not to be changed.
type Divider struct {
	Plan

	// Divisions are all that the plan has, each once; the first is Default.
	Divisions []Division

	// Which division a flow has is looked up by its protocol and destination
	// in Exact, then without its port in AnyPort, then it is that of the
	// first of Networks that matches, then Divisions[0].
	Exact    map[Endpoint]int
	AnyPort  map[Endpoint]int
	Networks []Network

	Replies map[ReplyPort]int // which division what real servers send has
}

// A Network is a service on many virtual addresses.
type Network struct {
	Service
	Index int // of its division
}

// NewDivider checks the plan and makes it ready. The error names the value at
// fault and what would be right.
func NewDivider(p Plan) (*Divider, error) {
	p.VIPs, p.Services = slices.Clone(p.VIPs), slices.Clone(p.Services)
	if err := p.check(); err != nil {
		return nil, err
	}
	d := &Divider{
		Plan: p, Exact: make(map[Endpoint]int), AnyPort: make(map[Endpoint]int),
	}
	d.index(p.Default)
	// The more telling comes first, and its place is not taken again.
	slices.SortStableFunc(d.Services, func(a, b Service) int {
		return cmp.Or(
			-cmp.Compare(a.VIP.Bits(), b.VIP.Bits()),
			-cmp.Compare(min(a.Port, 1), min(b.Port, 1)),
			-cmp.Compare(min(a.Proto, 1), min(b.Proto, 1)),
		)
	})
	for _, s := range d.Services {
		d.place(s, d.index(s.Division))
	}
	if p.Inside != nil {
		d.Replies = make(map[ReplyPort]int)
		for _, r := range p.Inside.Replies {
			d.Replies[ReplyPort{r.Proto, r.Port}] = d.index(r.Division)
		}
	}
	return d, nil
}

func (p *Plan) check() error {
	if len(p.VIPs) == 0 {
		return errors.New("no virtual address given")
	}
	for i, v := range p.VIPs {
		if !v.IsValid() || v.Addr().Is4In6() || v.Addr().Zone() != "" {
			return fmt.Errorf("virtual address %v: use an address such as 10.9.0.100 or 2001:db8::100, or a network", v)
		}
		p.VIPs[i] = v.Masked()
		for _, w := range p.VIPs[:i] {
			if w.Overlaps(v) {
				return fmt.Errorf("virtual addresses %v and %v overlap: name each address once", w, v)
			}
		}
	}
	if !ValidBuckets(p.Buckets) {
		return fmt.Errorf("%d buckets: use a power of two up to %d", p.Buckets, MaxBuckets)
	}
	if err := p.Default.check(); err != nil {
		return err
	}
	named := make(map[Service]Division, len(p.Services))
	for i, s := range p.Services {
		if err := s.check(p.VIPs); err != nil {
			return fmt.Errorf("service %v: %w", s, err)
		}
		s.VIP = s.VIP.Masked()
		p.Services[i] = s
		key := Service{Proto: s.Proto, VIP: s.VIP, Port: s.Port}
		if d, again := named[key]; again && d != s.Division {
			return fmt.Errorf("service %v: divided by %v and by %v; name it once", s, d, s.Division)
		}
		named[key] = s.Division
	}
	return p.checkInside()
}

// index returns the number of a division, which it may be the first to use.
func (d *Divider) index(want Division) int {
	if want.Sense&SrcAddr == 0 || want.Bits4 == 32 {
		want.Bits4 = 0
	}
	if want.Sense&SrcAddr == 0 || want.Bits6 == 128 {
		want.Bits6 = 0
	}
	if i := slices.Index(d.Divisions, want); i >= 0 {
		return i
	}
	d.Divisions = append(d.Divisions, want)
	return len(d.Divisions) - 1
}

func (d *Divider) place(s Service, index int) {
	if !s.VIP.IsSingleIP() {
		n := Network{Service: s, Index: index}
		if !slices.ContainsFunc(d.Networks, func(m Network) bool { return compareNetworks(m, n) == 0 }) {
			d.Networks = append(d.Networks, n)
		}
		return
	}
	protos := []uint8{s.Proto}
	if s.Proto == 0 {
		protos = Ported
	}
	to := d.Exact
	if s.Port == 0 {
		to = d.AnyPort
	}
	for _, proto := range protos {
		e := Endpoint{Proto: proto, Addr: s.VIP.Addr(), Port: s.Port}
		if _, taken := to[e]; !taken {
			to[e] = index
		}
	}
}

// division returns the number of the division of a flow to dst.
func (d *Divider) division(proto uint8, dst netip.AddrPort) int {
	e := Endpoint{Proto: proto, Addr: dst.Addr(), Port: dst.Port()}
	if i, ok := d.Exact[e]; ok {
		return i
	}
	e.Port = 0
	if i, ok := d.AnyPort[e]; ok {
		return i
	}
	for i := range d.Networks {
		n := &d.Networks[i]
		if (n.Proto == 0 || n.Proto == proto) && (n.Port == 0 || n.Port == dst.Port()) && n.VIP.Contains(dst.Addr()) {
			return n.Index
		}
	}
	return 0
}

// Shape is the same text for plans that decide every packet alike, and another
// for others: directors compare it before they divide a share. The seed is in
// it, so show nobody but a hash of it.
func (d *Divider) Shape() string {
	var b strings.Builder
	vips := slices.Clone(d.VIPs)
	slices.SortFunc(vips, comparePrefixes)
	fmt.Fprintf(&b, "%v %d %d", vips, d.Buckets, d.Seed)
	fmt.Fprintf(&b, "; %v", d.Divisions[0])
	for _, flows := range []map[Endpoint]int{d.Exact, d.AnyPort} {
		services := slices.SortedFunc(maps.Keys(flows), func(x, y Endpoint) int {
			return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Proto, y.Proto), cmp.Compare(x.Port, y.Port))
		})
		for _, e := range services {
			fmt.Fprintf(&b, "; %d %v %d %v", e.Proto, e.Addr, e.Port, d.Divisions[flows[e]])
		}
	}
	for _, n := range slices.SortedFunc(slices.Values(d.Networks), compareNetworks) {
		fmt.Fprintf(&b, "; %v %v", n.Service, n.Division)
	}
	b.WriteString(d.Inside.shape())
	return b.String()
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareNetworks(a, b Network) int {
	return cmp.Or(comparePrefixes(a.VIP, b.VIP), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// IsVIP reports whether a is a virtual address of the plan.
func (p *Plan) IsVIP(a netip.Addr) bool {
	for _, v := range p.VIPs {
		if v.Contains(a) {
			return true
		}
	}
	return false
}

// Hosts returns addresses as the networks of one address that a Plan takes.
func Hosts(addrs ...netip.Addr) []netip.Prefix {
	hosts := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		a = a.Unmap()
		hosts[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return hosts
}
