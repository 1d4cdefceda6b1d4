package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Forward is how a director sends a connection's packets on (ipvsadm(8)).
type Forward string

// The forwarding methods of IPVS.
const (
	Gate Forward = "gate" // direct routing: the real server has the VIP too
	Masq Forward = "masq" // NAT: replies must pass a director
	IPIP Forward = "ipip" // tunnel: the real server unpacks, and has the VIP
	GUE  Forward = "gue"  // the same in UDP
	GRE  Forward = "gre"  // and in GRE
)

// guePort is where real servers unpack GUE (IANA's number for it).
const guePort = "6080"

var forwardFlag = map[Forward]string{
	Gate: "-g", Masq: "-m", IPIP: "-i", GUE: "-i --tun-type gue --tun-port " + guePort, GRE: "-i --tun-type gre",
}

// Service is one virtual service, on the VIP, with every real server behind it.
type Service struct {
	Proto      string  // "tcp" or "udp"
	Port       uint16  // at the VIP
	Scheduler  string  // as ipvsadm names it; default rr
	Forward    Forward // default Gate
	RealPort   uint16  // at the real servers; default Port, and Port unless Masq
	Persistent int     // seconds; 0 is none
	Netmask    string  // of clients that are one to a persistent service, as ipvsadm takes it; default each is one
	Mark       int     // services of one mark are one, a firewall mark's; 0 is none
	Engine     string  // of persistence, "sip"; default none: by the client's address
	OnePacket  bool    // each datagram is a connection (ipvsadm --ops)
}

// Topology declares a network. Zero fields take the defaults.
type Topology struct {
	Name        string       // default "lab"
	Subnet      netip.Prefix // default 10.9.0.0/24
	VIP         netip.Addr   // default host 100 of Subnet
	IPv6        bool         // every node has the same host of 2001:db8:9::/64 too, and the services under Gate are there at VIP6
	Directors   int          // 1 to 8, named d1 …, hosts 2 … of Subnet
	RealServers int          // 0 to 50, named r1 …, hosts 21 …
	Clients     int          // 0 to 9, named c1 …, hosts 11 …
	Services    []Service    // need a kernel with IPVS

	// VIPOnDirectors lets the lab configure the VIP on lo, with arp_ignore=1
	// and arp_announce=2, as an operator would.
	VIPOnDirectors bool

	// NoFlood makes the switch send unknown unicast to no port, as most virtual
	// ones do.
	NoFlood bool

	// Gateway is what real servers reach clients through under Masq, with their
	// own address as the source; default the first director.
	Gateway netip.Addr
}

// VIP6 is the virtual address of a topology with IPv6.
var VIP6 = host6(hostVIP)

const (
	maxDirectors   = 8
	maxClients     = 9
	maxRealServers = 50

	firstDirector   = 2
	firstClient     = 11
	firstRealServer = 21
	hostVIP         = 100
)

func (t Topology) withDefaults() (Topology, error) {
	if t.Name == "" {
		t.Name = "lab"
	}
	if !t.Subnet.IsValid() {
		t.Subnet = netip.MustParsePrefix("10.9.0.0/24")
	}
	if !t.Subnet.Addr().Is4() || t.Subnet.Bits() > 24 {
		return t, fmt.Errorf("topology %s: subnet %v: give an IPv4 one of /24 or larger", t.Name, t.Subnet)
	}
	t.Subnet = t.Subnet.Masked()
	if !t.VIP.IsValid() {
		t.VIP = host(t.Subnet, hostVIP)
	}
	if !t.Gateway.IsValid() {
		t.Gateway = host(t.Subnet, firstDirector)
	}
	for _, n := range []struct {
		what           string
		have, min, max int
	}{
		{"directors", t.Directors, 0, maxDirectors},
		{"real servers", t.RealServers, 0, maxRealServers},
		{"clients", t.Clients, 0, maxClients},
	} {
		if n.have < n.min || n.have > n.max {
			return t, fmt.Errorf("topology %s: %d %s: give %d to %d", t.Name, n.have, n.what, n.min, n.max)
		}
	}
	services := make([]Service, len(t.Services))
	for i, s := range t.Services {
		var err error
		if services[i], err = s.withDefaults(); err != nil {
			return t, fmt.Errorf("topology %s: %w", t.Name, err)
		}
	}
	t.Services = services
	return t, nil
}

func (s Service) withDefaults() (Service, error) {
	if s.Scheduler == "" {
		s.Scheduler = "rr"
	}
	if s.Forward == "" {
		s.Forward = Gate
	}
	if s.RealPort == 0 {
		s.RealPort = s.Port
	}
	switch {
	case s.Proto != "tcp" && s.Proto != "udp":
		return s, fmt.Errorf("service protocol %q: give tcp or udp", s.Proto)
	case s.Port == 0:
		return s, errors.New("service without a port")
	case forwardFlag[s.Forward] == "":
		return s, fmt.Errorf("service forwarding %q: give gate, masq, ipip, gue or gre", s.Forward)
	case (s.Engine != "" || s.OnePacket) && s.Proto != "udp":
		return s, fmt.Errorf("service port %d: a persistence engine and one-packet scheduling are for udp", s.Port)
	case s.Forward != Masq && s.RealPort != s.Port:
		return s, fmt.Errorf("service port %d to real port %d: only masq can change ports", s.Port, s.RealPort)
	}
	return s, nil
}

// rules is the service as ipvsadm's restore format.
func (s Service) rules(vip netip.Addr, servers []netip.Addr) string {
	virtual := fmt.Sprintf("-%c %v", s.Proto[0], netip.AddrPortFrom(vip, s.Port))
	port := s.RealPort
	if s.Mark != 0 {
		virtual, port = fmt.Sprintf("-f %d", s.Mark), 0 // the packet's
	}
	persistent := ""
	if s.Persistent > 0 {
		persistent = fmt.Sprintf(" -p %d", s.Persistent)
	}
	if s.Netmask != "" {
		persistent += " -M " + s.Netmask
	}
	if s.Engine != "" {
		persistent += " --pe " + s.Engine
	}
	if s.OnePacket {
		persistent += " -o"
	}
	text := fmt.Sprintf("-A %s -s %s%s\n", virtual, s.Scheduler, persistent)
	for _, r := range servers {
		text += fmt.Sprintf("-a %s -r %v %s -w 1\n", virtual, netip.AddrPortFrom(r, port), forwardFlag[s.Forward])
	}
	return text
}

func (t Topology) uses(f Forward) bool {
	for _, s := range t.Services {
		if s.Forward == f {
			return true
		}
	}
	return false
}

// host returns the n-th address of an IPv4 prefix.
func host(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	b[3] += byte(n)
	return netip.AddrFrom4(b)
}

func host6(n int) netip.Addr {
	b := netip.MustParseAddr("2001:db8:9::").As16()
	b[15] = byte(n)
	return netip.AddrFrom16(b)
}

// hardwareAddr is a node's stable, locally administered MAC address.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x6c, b[0], b[1], b[2], b[3]}
}
