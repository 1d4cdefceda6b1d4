package syncd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"saru/conntable"
	"saru/internal/config"
)

// A ServiceFilter says which services are mirrored. The nil ServiceFilter
// takes all. It is the same on all directors of a cluster, or their tables
// never are.
type ServiceFilter struct {
	only, except []serviceMatch
}

// A serviceMatch is an address or prefix, with what narrows it, or a mark.
type serviceMatch struct {
	prefix   netip.Prefix
	port     uint16 // 0: any
	protocol int    // -1: any
	mark     uint32 // if not 0, alone
}

// ParseServiceFilter parses the lists filter.services and filter.except. Each
// of their strings is "10.9.0.100", "10.9.0.0/24", "10.9.0.100:80",
// "[2001:db8::1]:53", any of these with "/udp" or another protocol behind, or
// "fwmark 5".
func ParseServiceFilter(services, except []string) (*ServiceFilter, error) {
	var f ServiceFilter
	var err error
	if f.only, err = parseServices("filter.services", services); err != nil {
		return nil, err
	}
	if f.except, err = parseServices("filter.except", except); err != nil {
		return nil, err
	}
	if len(f.only) == 0 && len(f.except) == 0 {
		return nil, nil
	}
	return &f, nil
}

func parseServices(key string, list []string) (out []serviceMatch, err error) {
	for _, s := range list {
		m, ok := parseService(s)
		if !ok {
			return nil, config.Bad("%s: %q: must be such as \"10.9.0.100:80\", \"10.9.0.100:53/udp\", \"10.9.0.0/24\", \"[2001:db8::1]:80\" or \"fwmark 5\"", key, s)
		}
		out = append(out, m)
	}
	return out, nil
}

func parseService(s string) (m serviceMatch, ok bool) {
	m.protocol = -1
	if mark, is := strings.CutPrefix(s, "fwmark "); is {
		n, err := strconv.ParseUint(mark, 0, 32)
		m.mark = uint32(n)
		return m, err == nil && n != 0
	}
	if at := strings.LastIndexByte(s, '/'); at >= 0 {
		if p, err := parseProtocol(s[at+1:]); err == nil && !isNumber(s[at+1:]) {
			m.protocol, s = p, s[:at]
		}
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		m.prefix, m.port = netip.PrefixFrom(ap.Addr().Unmap(), ap.Addr().Unmap().BitLen()), ap.Port()
		return m, ap.Port() != 0
	}
	if a, err := netip.ParseAddr(s); err == nil {
		m.prefix = netip.PrefixFrom(a, a.BitLen())
		return m, a.Zone() == ""
	}
	p, err := netip.ParsePrefix(s)
	m.prefix = p.Masked()
	return m, err == nil
}

func isNumber(s string) bool { _, err := strconv.Atoi(s); return s == "" || err == nil }

// Takes reports whether c is of a service that is mirrored. A template of a
// service without a port has none itself, so it is taken for any of its
// address.
func (f *ServiceFilter) Takes(c *conntable.Connection) bool {
	return f == nil || (len(f.only) == 0 || matchAny(f.only, c)) && !matchAny(f.except, c)
}

func matchAny(list []serviceMatch, c *conntable.Connection) bool {
	for i := range list {
		if list[i].matches(c) {
			return true
		}
	}
	return false
}

func (m *serviceMatch) matches(c *conntable.Connection) bool {
	if m.mark != 0 {
		return markOf(c) == m.mark
	}
	port := c.Virtual.Port()
	return m.prefix.Contains(c.Virtual.Addr()) &&
		(m.port == 0 || m.port == port || c.Template && port == 0) &&
		(m.protocol < 0 || m.protocol == int(c.Protocol))
}

// markOf returns the mark of c's service, if it may be one's. Of a fwmark
// template the virtual address is the mark (net/netfilter/ipvs/ip_vs_core.c,
// ip_vs_sched_persist).
func markOf(c *conntable.Connection) uint32 {
	if c.Template && c.Protocol == 0 && c.Virtual.Addr().Is4() {
		b := c.Virtual.Addr().As4()
		return binary.BigEndian.Uint32(b[:])
	}
	return c.FWMark
}

// String returns the filter as the configuration has it; "" takes all.
func (f *ServiceFilter) String() string {
	if f == nil {
		return ""
	}
	var s []string
	for i := range f.only {
		s = append(s, f.only[i].String())
	}
	for i := range f.except {
		s = append(s, "not "+f.except[i].String())
	}
	return strings.Join(s, ", ")
}

func (m *serviceMatch) String() string {
	s := m.prefix.String()
	switch {
	case m.mark != 0:
		return fmt.Sprintf("fwmark %d", m.mark)
	case m.port != 0:
		s = netip.AddrPortFrom(m.prefix.Addr(), m.port).String()
	case m.prefix.IsSingleIP():
		s = m.prefix.Addr().String()
	}
	if m.protocol >= 0 {
		s += "/" + strings.ToLower(protocolName(uint8(m.protocol)))
	}
	return s
}

// SetFilter says which services are mirrored from now on. What is in the
// mirror of others stays until its deadline, and the kernel hears no more of it.
// What peers told of those that are mirrored now is pulled from them.
func (e *Engine) SetFilter(f *ServiceFilter) {
	e.filter.Store(f)
	e.session.PullAll()
}

// takes reports whether c is mirrored.
func (e *Engine) takes(c *conntable.Connection) bool { return e.filter.Load().Takes(c) }

// wants is takes for what somebody told, and counts what is not mirrored.
func (e *Engine) wants(c *conntable.Connection) bool {
	if e.takes(c) {
		return true
	}
	e.filtered.Add(1)
	return false
}
