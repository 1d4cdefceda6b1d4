package syncd

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"saru/conntable"
	"saru/internal/config"
	"saru/ipvs"
)

// A Conn is a connection of the mirror as GET /conns tells it, one JSON object
// a line.
type Conn struct {
	Protocol string  `json:"proto"`
	State    string  `json:"state"`
	ExpireS  float64 `json:"expire_s"`
	Client   string  `json:"client"`
	Virtual  string  `json:"virtual"`
	Dest     string  `json:"dest"`
	FWMark   uint32  `json:"fwmark,omitempty"`
	Forward  string  `json:"forward"` // masq, gate, ipip, local, bypass
	Template bool    `json:"template,omitempty"`
	Deleted  bool    `json:"deleted,omitempty"`
	Local    bool    `json:"local"` // this node told it last
	Clock    uint64  `json:"clock"` // of its version, microseconds since 1970
	PEName   string  `json:"pe_name,omitempty"`
}

var protocolNames = map[uint8]string{0: "IP", 6: "TCP", 17: "UDP", 50: "ESP", 51: "AH", 132: "SCTP"}

func protocolName(p uint8) string {
	if n, ok := protocolNames[p]; ok {
		return n
	}
	return strconv.Itoa(int(p))
}

var forwardNames = map[uint32]string{
	conntable.FlagFwdMasq: "masq", conntable.FlagFwdLocal: "local", conntable.FlagFwdTunnel: "ipip",
	conntable.FlagFwdGate: "gate", conntable.FlagFwdBypass: "bypass",
}

func (e *Engine) conn(r *conntable.Record) Conn {
	return Conn{
		Protocol: protocolName(r.Protocol), State: ipvs.StateName(r.Protocol, r.Template, r.State), ExpireS: r.Remaining.Seconds(),
		Client: r.Client.String(), Virtual: r.Virtual.String(), Dest: r.Dest.String(), FWMark: r.FWMark,
		Forward: forwardNames[r.Flags&conntable.FlagFwdMask], Template: r.Template, Deleted: r.Deleted,
		Local: r.Version.Node == e.self, Clock: r.Version.Clock, PEName: r.PEName,
	}
}

const connFormat = "%-3s %-6s %-11s %-18s %-18s %s\n"

// PrintConnsHead writes what ipvsadm -Lnc writes before connections.
func PrintConnsHead(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "IPVS connection entries"); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, connFormat, "pro", "expire", "state", "source", "virtual", "destination")
	return err
}

// Print writes c as ipvsadm -Lnc does.
func (c *Conn) Print(w io.Writer) error {
	left := time.Duration(c.ExpireS * float64(time.Second)).Round(time.Second)
	expire := fmt.Sprintf("%02d:%02d", int(left/time.Minute), int(left%time.Minute/time.Second))
	_, err := fmt.Fprintf(w, connFormat, c.Protocol, expire, c.State, c.Client, c.Virtual, c.Dest)
	return err
}

// A Filter picks connections. The zero Filter picks all that live.
type Filter struct {
	Protocol              string // tcp, udp, sctp, or a number
	Client, Virtual, Dest string // an address, address:port, or prefix
}

// Values returns f as the query of GET /conns.
func (f Filter) Values() url.Values {
	v := url.Values{}
	for k, s := range map[string]string{"proto": f.Protocol, "client": f.Client, "virtual": f.Virtual, "dest": f.Dest} {
		if s != "" {
			v.Set(k, s)
		}
	}
	return v
}

// ParseFilter checks a query of GET /conns.
func ParseFilter(v url.Values) (func(*conntable.Record) bool, error) {
	proto, err := parseProtocol(v.Get("proto"))
	client, cerr := parseEnd("client", v.Get("client"))
	virtual, verr := parseEnd("virtual", v.Get("virtual"))
	dest, derr := parseEnd("dest", v.Get("dest"))
	if err := errors.Join(err, cerr, verr, derr); err != nil {
		return nil, err
	}
	return func(r *conntable.Record) bool {
		return !r.Deleted && (proto < 0 || proto == int(r.Protocol)) && client(r.Client) && virtual(r.Virtual) && dest(r.Dest)
	}, nil
}

func parseProtocol(s string) (int, error) {
	if s == "" {
		return -1, nil
	}
	for n, name := range protocolNames {
		if strings.EqualFold(name, s) {
			return int(n), nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return int(n), nil
	}
	return 0, config.Bad("--proto %q is no protocol; use tcp, udp, sctp or a number", s)
}

func parseEnd(flag, s string) (func(netip.AddrPort) bool, error) {
	if s == "" {
		return func(netip.AddrPort) bool { return true }, nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return func(x netip.AddrPort) bool { return x == ap }, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return func(x netip.AddrPort) bool { return x.Addr() == a }, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return func(x netip.AddrPort) bool { return p.Contains(x.Addr()) }, nil
	}
	return nil, config.Bad("--%s %q is no address; use 10.0.0.1, 10.0.0.1:80 or 10.0.0.0/24", flag, s)
}

// Conns calls yield with each connection that pick picks, until it returns
// false.
func (e *Engine) Conns(pick func(*conntable.Record) bool, yield func(Conn) bool) {
	e.table.Each(func(r *conntable.Record) bool { return !pick(r) || yield(e.conn(r)) })
}
