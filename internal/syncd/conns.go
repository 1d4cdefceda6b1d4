package syncd

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
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
	Owned    bool    `json:"owned"`             // this node told it last
	Clock    uint64  `json:"clock"`             // of its version, microseconds since 1970
	PEName   string  `json:"pe_name,omitempty"` // its persistence engine
	PEData   string  `json:"pe_data,omitempty"` // of that engine, for sip a call id; see printable
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
		Client: clientOf(&r.Key).String(), Virtual: r.Virtual.String(), Dest: r.Dest.String(), FWMark: r.FWMark,
		Forward: forwardNames[r.Flags&conntable.FlagFwdMask], Template: r.Template, Deleted: r.Deleted,
		Owned: owns(r, e.self), Clock: r.Version.Clock, PEName: printable(r.PEName), PEData: printable(r.PEData),
	}
}

// printable returns s with \xNN for each byte that is no printable ASCII, and for
// the backslash: who has it can tell what s was.
func printable[T string | []byte](s T) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
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

// Print writes c as ipvsadm -Lnc does, and one of a persistence engine as it does
// with --persistent-conn.
func (c *Conn) Print(w io.Writer) error {
	left := time.Duration(c.ExpireS * float64(time.Second)).Round(time.Second)
	expire := fmt.Sprintf("%02d:%02d", int(left/time.Minute), int(left%time.Minute/time.Second))
	dest := c.Dest
	if c.PEData != "" {
		dest = fmt.Sprintf("%-16s %-18s %s", dest, c.PEName, c.PEData)
	}
	_, err := fmt.Fprintf(w, connFormat, c.Protocol, expire, c.State, c.Client, c.Virtual, dest)
	return err
}

// A Filter picks connections. The zero Filter picks all.
type Filter struct {
	Protocol              string // tcp, udp, sctp, or a number
	Client, Virtual, Dest string // an address, address:port, or prefix
	State                 string // as ipvsadm names it
	Owner                 string // owned: told last by this node; foreign: by another
}

// Values returns f as the query of GET /conns.
func (f Filter) Values() url.Values {
	v := url.Values{}
	for k, s := range map[string]string{
		"proto": f.Protocol, "client": f.Client, "virtual": f.Virtual, "dest": f.Dest, "state": f.State, "owner": f.Owner,
	} {
		if s != "" {
			v.Set(k, s)
		}
	}
	return v
}

// A Picker is a Filter that was found good.
type Picker struct {
	proto                 int // -1: any
	client, virtual, dest func(netip.AddrPort) bool
	state                 string
	owned, foreign        bool
}

// ParseFilter checks a query of GET /conns.
func ParseFilter(v url.Values) (*Picker, error) {
	p := &Picker{state: v.Get("state")}
	var errs [6]error
	p.proto, errs[0] = parseProtocol(v.Get("proto"))
	p.client, errs[1] = parseEnd("client", v.Get("client"))
	p.virtual, errs[2] = parseEnd("virtual", v.Get("virtual"))
	p.dest, errs[3] = parseEnd("dest", v.Get("dest"))
	if names := ipvs.StateNames(); p.state != "" && !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, p.state) }) {
		errs[5] = config.Bad("--state %q is no state; use one of %s", p.state, strings.Join(names, ", "))
	}
	switch owner := v.Get("owner"); owner {
	case "":
	case "owned":
		p.owned = true
	case "foreign":
		p.foreign = true
	default:
		errs[4] = config.Bad("--owner %q: use owned, for what this node told last, or foreign", owner)
	}
	return p, errors.Join(errs[:]...)
}

// Matches reports whether p picks r, on the node self.
func (p *Picker) Matches(r *conntable.Record, self conntable.NodeID) bool {
	return (p.proto < 0 || p.proto == int(r.Protocol)) && p.client(r.Client) && p.virtual(r.Virtual) && p.dest(r.Dest) &&
		(p.state == "" || strings.EqualFold(p.state, ipvs.StateName(r.Protocol, r.Template, r.State))) &&
		(!p.owned || owns(r, self)) && (!p.foreign || !owns(r, self))
}

// owns reports whether the node self told r last, or found it in its kernel
// where a packet had made it. The sum of what all directors own counts each
// connection once.
func owns(r *conntable.Record, self conntable.NodeID) bool {
	return r.Version.Node == self && r.Flags&conntable.FlagSync == 0
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

// Conns calls yield with each living connection that pick picks, until it
// returns false.
func (e *Engine) Conns(pick *Picker, yield func(Conn) bool) {
	e.table.Each(func(r *conntable.Record) bool { return r.Deleted || !pick.Matches(r, e.self) || yield(e.conn(r)) })
}
