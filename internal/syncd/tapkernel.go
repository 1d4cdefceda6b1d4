package syncd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/syncproto/kernelsync"
)

// A tapKernel is the Kernel behind the kernel's own sync threads.
type tapKernel struct {
	tap *ipvs.Tap
	lister
}

// A lister reads what IPVS is configured for.
type lister struct {
	client *ipvs.Client
}

// openTap starts the sync threads, which tell captured. stateFile keeps what
// must be put back.
func openTap(log *slog.Logger, stateFile string, keep bool, captured func(*conntable.Connection)) (*tapKernel, error) {
	tap, err := ipvs.OpenTap(log, ipvs.Config{OnRecord: captured, StateFile: stateFile, Keep: keep})
	if err != nil {
		return nil, err
	}
	client, err := ipvs.Dial()
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return &tapKernel{tap, lister{client}}, nil
}

func (k *tapKernel) close() error { return errors.Join(k.client.Close(), k.tap.Close()) }

func (k *tapKernel) Inject(conns []conntable.Connection) error { return k.tap.Inject(conns) }

func (k *tapKernel) Delete(c conntable.Connection) error { return k.tap.Delete(c) }

func (k *tapKernel) Settle(ctx context.Context) error { return k.tap.Settle(ctx) }

func (k *tapKernel) Lost() uint64 { return k.tap.Lost() }

func (k *tapKernel) Stats() KernelStats {
	s := k.tap.Stats()
	st := KernelStats{
		Source: "daemon", NotCovered: notCovered, Captured: s.Captured.Records, Injected: s.Injected, Beats: s.Captured.Beats,
		Drops: s.CaptureDrops + s.InjectDrops + s.Unencodable, Malformed: malformed(&s.Decoded),
	}
	if !s.Guarded {
		st.Warnings = append(st.Warnings, "other local processes can reach the tap: nftables cannot guard it here (see the log)")
	}
	if ok, why := k.tap.Healthy(); !ok {
		st.Degraded = "capture: " + why
	}
	return st
}

// malformed names what a decoder dropped, and how often.
func malformed(c *kernelsync.Counts) map[string]uint64 {
	return map[string]uint64{
		"kernel_short": c.Short, "kernel_size": c.Size, "kernel_sync_id": c.SyncID, "kernel_record": c.Record,
		"kernel_version": c.Version, "kernel_type": c.Type, "kernel_option": c.Option, "kernel_unknown_option": c.UnknownOption,
		"kernel_protocol": c.Protocol, "kernel_state": c.State, "kernel_one_packet": c.OnePacket,
		"kernel_template": c.Template, "kernel_pe": c.PE,
	}
}

// notCovered is what the sync threads and /proc cannot give.
var notCovered = []string{
	"handshakes that are not complete, but those of TCP when saru gives buckets away, and UDP of one-packet services: the kernel never tells of them",
	"what overflows the kernel's own queue to its sync threads (net.ipv4.vs.sync_qlen_max): it has no counter, and is seen by the audit only",
	"a server's reset, and what the server alone keeps alive: seen by the audit only (see its last pass for how often)",
	"services with real servers of both address families: the kernel allows none beside its sync threads",
	"what /proc does not show: sequence numbers (FTP) and SIP call ids of connections that are older than syncd; " +
		"a SIP call that was lost on the way from the kernel",
}

func (k lister) Services() (Services, error) {
	out := Services{Targets: map[Target]struct{}{}}
	err := k.each(func(s *ipvs.Service, dests []ipvs.Dest) {
		out.Items = appendItems(out.Items, s, dests)
		for i := range dests {
			out.Targets[target(s, &dests[i])] = struct{}{}
			out.Connections += int(dests[i].Active + dests[i].Inactive)
		}
	})
	if err != nil {
		return out, err
	}
	info, err := k.client.Info()
	out.Buckets = int(info.TableSize)
	return out, err
}

func (k lister) each(fn func(*ipvs.Service, []ipvs.Dest)) error {
	services, err := k.client.Services()
	if err != nil {
		return err
	}
	for i := range services {
		dests, err := k.client.Dests(services[i])
		if err != nil {
			return fmt.Errorf("service %v: %w", services[i].Addr, err)
		}
		fn(&services[i], dests)
	}
	return nil
}

func target(s *ipvs.Service, d *ipvs.Dest) Target {
	return Target{Virtual: s.Addr, FWMark: s.FWMark, Protocol: s.Protocol, Dest: d.Addr}
}

// Entries reads the kernel's table, and adds what that does not tell as well
// as the services know it: the forwarding method, and the timeout.
func (k *tapKernel) Entries(pace func() error, fn func(*Entry)) error {
	known, err := k.knownServices()
	if err != nil {
		return err
	}
	var out Entry
	return ipvs.ReadConns(pace, func(e *ipvs.Entry) error {
		if e.Expires > 0 && !ipvs.IsBeat(&e.Connection) && !known.isCall(&e.Connection) {
			out = Entry{e.Connection, e.Expires, e.Synced, e.Torn}
			known.complete(&out.Connection)
			fn(&out)
		}
		return nil
	})
}

// known is what the services tell of entries that /proc shows.
type known struct {
	forward map[Target]uint32
	marks   map[netip.AddrPort]uint32       // of fwmark services, by real server; its port may be 0
	byDest  map[netip.Addr]uint32           // for templates and fwmark services
	persist map[conntable.Key]time.Duration // by templateOf
	engines map[conntable.Key]bool          // services with a persistence engine, by templateOf

	timeouts ipvs.Timeouts
}

func (k lister) knownServices() (*known, error) {
	out := &known{
		forward: map[Target]uint32{}, marks: map[netip.AddrPort]uint32{}, byDest: map[netip.Addr]uint32{},
		persist: map[conntable.Key]time.Duration{}, engines: map[conntable.Key]bool{},
	}
	var err error
	if out.timeouts, err = k.client.Timeouts(); err != nil {
		return nil, err
	}
	err = k.each(func(s *ipvs.Service, dests []ipvs.Dest) {
		out.learn(s)
		for i := range dests {
			d := &dests[i]
			out.forward[target(s, d)] = d.Forward
			out.byDest[d.Addr.Addr()] = d.Forward
			if s.FWMark != 0 {
				out.marks[d.Addr] = s.FWMark
			}
		}
	})
	return out, err
}

// learn takes in what a service tells of its templates.
func (k *known) learn(s *ipvs.Service) {
	if s.PEName != "" {
		k.engines[templateOf(s)] = true
	}
	if s.Flags&ipvs.ServicePersistent != 0 {
		// FTP and port 0 of one address have their templates in common, whose
		// timeout is that of the service that a client came to first. Nobody
		// loses his real server by the longer one.
		key := templateOf(s)
		k.persist[key] = max(k.persist[key], time.Duration(s.Timeout)*time.Second)
	}
}

// portFTP is FTPPORT of include/net/ip_vs.h.
const portFTP = 21

// templateOf returns what the templates of a service have in common: protocol,
// address and port; no port for FTP and for services of all ports; and for a
// mark the mark in the first four bytes of an address of its family, without
// protocol (net/netfilter/ipvs/ip_vs_core.c, ip_vs_sched_persist).
func templateOf(s *ipvs.Service) conntable.Key {
	if s.FWMark == 0 {
		virtual := s.Addr
		if virtual.Port() == portFTP {
			virtual = netip.AddrPortFrom(virtual.Addr(), 0)
		}
		return conntable.Key{Virtual: virtual, Protocol: s.Protocol, Template: true}
	}
	var mark [16]byte
	binary.BigEndian.PutUint32(mark[:], s.FWMark)
	if s.Family == unix.AF_INET6 {
		return conntable.Key{Virtual: netip.AddrPortFrom(netip.AddrFrom16(mark), 0), Template: true}
	}
	return conntable.Key{Virtual: netip.AddrPortFrom(netip.AddrFrom4([4]byte(mark[:])), 0), Template: true}
}

// isCall reports whether c is a persistence engine's template. /proc tells its
// data, or where it comes from, but not both.
func (k *known) isCall(c *conntable.Connection) bool {
	return k.engines[withoutClient(&c.Key)]
}

// withoutClient returns a template's key as templateOf does.
func withoutClient(k *conntable.Key) conntable.Key {
	return conntable.Key{Virtual: k.Virtual, Protocol: k.Protocol, Template: k.Template}
}

// complete sets c's forwarding method, timeout and mark.
func (k *known) complete(c *conntable.Connection) {
	fwd, ok := k.forward[Target{Virtual: c.Virtual, Protocol: c.Protocol, Dest: c.Dest}]
	if !ok {
		c.FWMark = k.markOf(c)
		fwd, ok = k.byDest[c.Dest.Addr()]
	}
	if a := c.Virtual.Addr(); c.Template && c.Protocol == 0 { // its address is the mark
		b := a.As16()
		if a.Is4() {
			c.FWMark = binary.BigEndian.Uint32(b[12:])
		} else {
			c.FWMark = binary.BigEndian.Uint32(b[:])
		}
	}
	if !ok {
		fwd = conntable.FlagFwdGate // harmless: it forwards to whom it says, unchanged
	}
	c.Flags |= fwd
	switch {
	case c.Template:
		c.Flags |= conntable.FlagTemplate
		c.Timeout = k.persist[withoutClient(&c.Key)]
	default:
		c.Timeout = k.timeout(c.Protocol, c.State)
	}
	if !countsActive(c) {
		c.Flags |= conntable.FlagInactive
	}
}

// markOf returns the mark of the fwmark service that has c's real server, or 0
// if none has, or c may be of a service of all ports. A real server's port 0
// stands for whatever the client called.
func (k *known) markOf(c *conntable.Connection) uint32 {
	if mark := k.marks[c.Dest]; mark != 0 {
		return mark
	}
	anyPort := netip.AddrPortFrom(c.Dest.Addr(), 0)
	if _, ok := k.forward[Target{Virtual: netip.AddrPortFrom(c.Virtual.Addr(), 0), Protocol: c.Protocol, Dest: anyPort}]; ok || c.Dest.Port() != c.Virtual.Port() {
		return 0
	}
	return k.marks[anyPort]
}

const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// IP_VS_TCP_S_... of include/net/ip_vs.h.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait     = 4
	tcpTimeWait    = 5
	tcpClose       = 6
	tcpLastAck     = 8
	tcpSynAck      = 10
)

// sctpEstablished is IP_VS_SCTP_S_ESTABLISHED.
const sctpEstablished = 8

// countsActive reports whether the kernel counts c among its real server's active
// connections: TCP and SCTP in some of their states, nothing else, and no
// template (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_state_active_table,
// ip_vs_proto_sctp.c, set_sctp_state, and ip_vs_ctl.c, __ip_vs_update_dest).
func countsActive(c *conntable.Connection) bool {
	switch {
	case c.Template:
		return false
	case c.Protocol == protoTCP:
		return tcpActive(c.State)
	}
	return c.Protocol == protoSCTP && c.State == sctpEstablished
}

func tcpActive(state uint16) bool {
	return state == tcpEstablished || state == tcpSynSent || state == tcpSynRecv || state == tcpSynAck
}

// tcpTimeouts are the kernel's, in seconds by state
// (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts).
var tcpTimeouts = [...]time.Duration{2, 15 * 60, 2 * 60, 60, 2 * 60, 2 * 60, 10, 60, 30, 2 * 60, 2 * 60}

// sctpTimeouts are the kernel's, in seconds by state
// (net/netfilter/ipvs/ip_vs_proto_sctp.c, sctp_timeouts).
var sctpTimeouts = [...]time.Duration{2, 60, 60, 60, 60, 60, 60, 60, 15 * 60, 60, 60, 60, 10, 10}

// timeout is the kernel's for a state, 0 if that is not known.
func (k *known) timeout(protocol uint8, state uint16) time.Duration {
	switch {
	case protocol == protoTCP && state == tcpEstablished:
		return k.timeouts.TCP
	case protocol == protoTCP && state == tcpFinWait:
		return k.timeouts.TCPFin
	case protocol == protoUDP:
		return k.timeouts.UDP
	}
	return defaultTimeout(protocol, state)
}

// defaultTimeout is the kernel's unless it was told otherwise.
func defaultTimeout(protocol uint8, state uint16) time.Duration {
	switch {
	case protocol == protoTCP && int(state) < len(tcpTimeouts):
		return tcpTimeouts[state] * time.Second
	case protocol == protoUDP:
		return 5 * time.Minute
	case protocol == protoSCTP && int(state) < len(sctpTimeouts):
		return sctpTimeouts[state] * time.Second
	}
	return 0
}
