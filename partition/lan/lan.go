package lan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Config names the LAN and what is shared there.
type Config struct {
	Interface string
	VIPs      []netip.Addr     // IPv4
	MAC       net.HardwareAddr // the shared MAC

	// Answer says whether this director is the one that answers an ARP
	// request from sender, which may be 0.0.0.0 (a probe, RFC 5227). It is
	// called from Run's goroutine. Nil answers none.
	Answer func(sender netip.Addr) bool

	// State is the file that keeps what Close restores, so that a start after
	// a crash can restore it too. Empty: a crash leaves the sysctls changed.
	State string
}

// A LAN is the director's place on it. It is a task: Run answers ARP.
type LAN struct {
	cfg     Config
	mac     [6]byte
	ifindex int
	vips    []netip.Addr
	handle  *netlink.Handle
	sysctls sysctls
	added   []netip.Addr
	socket  *packetSocket
	file    *os.File // of the socket
	ready   chan struct{}
	once    sync.Once

	requests, answers, conflicts, malformed atomic.Uint64
}

// label marks the addresses on lo that are ours.
const label = "lo:saru"

// Open puts the addresses on lo, sets the sysctls and joins the shared MAC, in
// the network namespace of the calling thread. Nothing is changed if it fails.
func Open(cfg Config) (_ *LAN, err error) {
	if len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("lan: shared MAC %q: use a unicast Ethernet address such as 02:00:5e:00:01:c9", cfg.MAC)
	}
	l := &LAN{cfg: cfg, mac: [6]byte(cfg.MAC), ready: make(chan struct{})}
	for _, a := range cfg.VIPs {
		if a = a.Unmap(); !a.Is4() {
			return nil, fmt.Errorf("lan: virtual address %v: only IPv4 is served yet", a)
		}
		l.vips = append(l.vips, a)
	}
	ifi, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("lan: interface %q: %w", cfg.Interface, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("lan: interface %q is not Ethernet", cfg.Interface)
	}
	l.ifindex = ifi.Index
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("lan: open a netlink socket: %w", err)
	}
	if l.socket, err = openPacket(ifi, l.mac); err != nil {
		return nil, fmt.Errorf("lan: join %v on %s: %w", cfg.MAC, cfg.Interface, err)
	}
	l.file = os.NewFile(uintptr(l.socket.fd), "arp "+cfg.Interface)
	// Before the address is there: the kernel must not answer for it once.
	if l.sysctls, err = openSysctls(cfg.State); err != nil {
		return nil, err
	}
	for _, where := range []string{"all", cfg.Interface} {
		if err := l.sysctls.set("net/ipv4/conf/"+where+"/arp_ignore", "1"); err != nil {
			return nil, err
		}
		if err := l.sysctls.set("net/ipv4/conf/"+where+"/arp_announce", "2"); err != nil {
			return nil, err
		}
	}
	if err := l.addVIPs(); err != nil {
		return nil, err
	}
	return l, nil
}

// addVIPs puts those addresses on lo that are not there. One that carries our
// label is what a crash left, and ours to remove.
func (l *LAN) addVIPs() error {
	lo, err := l.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lan: interface lo: %w", err)
	}
	have, err := l.handle.AddrList(lo, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("lan: list addresses of lo: %w", err)
	}
	for _, vip := range l.vips {
		i := slices.IndexFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(vip.AsSlice()) })
		if i >= 0 && have[i].Label != label {
			continue
		}
		if i < 0 {
			if err := l.handle.AddrAdd(lo, loAddr(vip)); err != nil {
				return fmt.Errorf("lan: add %v to lo: %w", vip, err)
			}
		}
		l.added = append(l.added, vip)
	}
	return nil
}

func loAddr(vip netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(32, 32)},
		Label: label, Scope: unix.RT_SCOPE_UNIVERSE,
	}
}

// Close takes back all that Open did. It may be called twice; not beside Run.
func (l *LAN) Close() error {
	var errs []error
	if lo, err := l.linkLo(); err != nil {
		errs = append(errs, err)
	} else if lo != nil {
		for _, vip := range l.added {
			err := l.handle.AddrDel(lo, loAddr(vip))
			if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("lan: remove %v from lo: %w", vip, err))
			}
		}
	}
	l.added = nil
	errs = append(errs, l.sysctls.restore())
	if l.file != nil {
		errs = append(errs, l.file.Close())
		l.file = nil
	}
	if l.handle != nil {
		l.handle.Close()
		l.handle = nil
	}
	return errors.Join(errs...)
}

func (l *LAN) linkLo() (netlink.Link, error) {
	if l.handle == nil || len(l.added) == 0 {
		return nil, nil
	}
	return l.handle.LinkByName("lo")
}

// Ready is closed once ARP requests are answered.
func (l *LAN) Ready() <-chan struct{} { return l.ready }

func (l *LAN) String() string { return "lan " + l.cfg.Interface }

// Run answers ARP requests for the virtual addresses until ctx ends.
func (l *LAN) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	l.once.Do(func() { close(l.ready) })
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := l.file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // told once when the link goes down; the socket lives on
		case err != nil:
			return fmt.Errorf("lan: read from %s: %w", l.cfg.Interface, err)
		}
		if err := l.answer(buf[:n]); err != nil && !lost(err) {
			return err
		}
	}
	return nil
}

// lost reports whether a frame could not be sent for a reason that passes.
func lost(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENXIO)
}

func (l *LAN) answer(frame []byte) error {
	p, err := parseARP(frame)
	if err != nil {
		l.malformed.Add(1)
		return nil
	}
	if slices.Contains(l.vips, p.sender) && p.senderMAC != l.mac {
		l.conflicts.Add(1)
		return nil
	}
	if p.op != opRequest || p.sender == p.target || !slices.Contains(l.vips, p.target) || !unicast(p.senderMAC) {
		return nil
	}
	l.requests.Add(1)
	if l.cfg.Answer == nil || !l.cfg.Answer(p.sender) {
		return nil
	}
	reply := arpPacket{op: opReply, senderMAC: l.mac, sender: p.target, targetMAC: p.senderMAC, target: p.sender}
	if err := l.send(&reply, p.senderMAC); err != nil {
		return err
	}
	l.answers.Add(1)
	return nil
}

// Announce tells the LAN the shared MAC of every virtual address (an ARP
// announcement, RFC 5227 section 2.3), so that caches which hold a director's
// own MAC forget it.
func (l *LAN) Announce() error {
	for _, vip := range l.vips {
		p := arpPacket{op: opRequest, senderMAC: l.mac, sender: vip, target: vip}
		if err := l.send(&p, broadcast); err != nil {
			return err
		}
	}
	return nil
}

// send sends p from the interface's own MAC, never the shared one.
func (l *LAN) send(p *arpPacket, dst [6]byte) error {
	link, err := l.handle.LinkByIndex(l.ifindex)
	if err != nil {
		return fmt.Errorf("lan: interface %s: %w", l.cfg.Interface, err)
	}
	own := link.Attrs().HardwareAddr
	if len(own) != 6 || [6]byte(own) == l.mac {
		return fmt.Errorf("lan: interface %s has the address %v: nothing may be sent from the shared MAC", l.cfg.Interface, own)
	}
	var buf [arpLen]byte
	if _, err := l.file.Write(p.appendFrame(buf[:0], dst, [6]byte(own))); err != nil {
		return fmt.Errorf("lan: send on %s: %w", l.cfg.Interface, err)
	}
	return nil
}

// Stats counts ARP packets.
type Stats struct {
	Requests  uint64 // for a virtual address
	Answers   uint64 // of which this director answered
	Conflicts uint64 // somebody else says that a virtual address is its own
	Malformed uint64
}

// Stats returns the counts since Open.
func (l *LAN) Stats() Stats {
	return Stats{l.requests.Load(), l.answers.Load(), l.conflicts.Load(), l.malformed.Load()}
}
