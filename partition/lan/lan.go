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
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/internal/task"
)

// A Config names the LAN and what is shared there.
type Config struct {
	Interface string
	VIPs      []netip.Prefix   // masked
	MAC       net.HardwareAddr // the shared MAC, or with Own the interface's

	// Answer says whether this director is the one that answers who asks for a
	// virtual address: sender may be 0.0.0.0 or :: (a probe, RFC 5227 and RFC
	// 4862). It is called from Run's goroutines. Nil answers none.
	Answer func(sender netip.Addr) bool

	// Own says that the virtual addresses are behind the interface's own MAC, on
	// each director another: who answers gets the frames (package forward).
	Own bool

	// NoRedirects says that packets are forwarded by way of the interface to
	// others on the same LAN, which must not learn of a shorter way.
	NoRedirects bool

	// Claimed is told of everybody else who says that a virtual address is its
	// own, each time. It is called from Run's goroutines, and must not wait. Nil:
	// nobody is told.
	Claimed func(addr netip.Addr, mac net.HardwareAddr)

	// Changed is told what somebody else has changed and Run has put right. It
	// is called from one of Run's goroutines. Nil: nobody is told.
	Changed func(what string)

	// State is the file that keeps what Close takes back, so that a start after
	// a crash can take it back too. Empty: a crash leaves some of it.
	State string
}

// keepEvery is how often Run looks whether its settings are still there.
const keepEvery = 5 * time.Second

// A LAN is the director's place on it. It is a task: Run answers ARP and
// neighbour solicitations.
type LAN struct {
	cfg     Config
	mac     [6]byte
	ifindex int
	handle  *netlink.Handle
	state   state
	home    string   // the network namespace that Open was called in
	arp     *os.File // also holds the membership of the shared MAC
	nd      *os.File // nil without an IPv6 address
	groups  *os.File // likewise
	ready   chan struct{}
	once    sync.Once

	requests, answers, conflicts, malformed, restored atomic.Uint64
}

// Open makes the addresses this host's, sets the sysctls and joins the shared
// MAC and the groups, in the network namespace of the calling thread. Nothing
// is changed if it fails.
func Open(cfg Config) (_ *LAN, err error) {
	if len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("lan: shared MAC %q: use a unicast Ethernet address such as 02:00:5e:00:01:c9", cfg.MAC)
	}
	l := &LAN{cfg: cfg, mac: [6]byte(cfg.MAC), ready: make(chan struct{})}
	for _, v := range cfg.VIPs {
		if !v.IsValid() || v != v.Masked() || v.Addr().Is4In6() {
			return nil, fmt.Errorf("lan: virtual address %v: use an address or a network", v)
		}
	}
	ifi, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("lan: interface %q: %w", cfg.Interface, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("lan: interface %q is not Ethernet", cfg.Interface)
	}
	l.ifindex = ifi.Index
	if l.home, err = namespace(); err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("lan: open a netlink socket: %w", err)
	}
	if l.arp, err = openARP(ifi, l.mac); err != nil {
		return nil, fmt.Errorf("lan: join %v on %s: %w", cfg.MAC, cfg.Interface, err)
	}
	if err := l.openND(ifi); err != nil {
		return nil, fmt.Errorf("lan: IPv6 on %s: %w", cfg.Interface, err)
	}
	if l.state, err = openState(cfg.State); err != nil {
		return nil, err
	}
	// Before the address is there: the kernel must not answer for it once.
	for _, s := range l.settings() {
		if err := l.state.set(s.key, s.value); err != nil {
			return nil, err
		}
	}
	if l.has4() {
		if _, err := l.state.loosen(cfg.Interface); err != nil {
			return nil, err
		}
	}
	return l, l.addLocal()
}

// settings are the sysctls that the addresses need.
func (l *LAN) settings() []setting {
	if !l.has4() {
		return nil
	}
	return settings(l.cfg.Interface, l.cfg.NoRedirects)
}

func (l *LAN) has4() bool {
	return slices.ContainsFunc(l.cfg.VIPs, func(v netip.Prefix) bool { return v.Addr().Is4() })
}

func (l *LAN) openND(ifi *net.Interface) (err error) {
	var hosts []netip.Addr
	has := false
	for _, v := range l.cfg.VIPs {
		has = has || v.Addr().Is6()
		if v.Addr().Is6() && v.IsSingleIP() {
			hosts = append(hosts, v.Addr())
		}
	}
	if !has {
		return nil
	}
	if l.nd, err = openND(ifi); err != nil {
		return err
	}
	l.groups, err = joinGroups(ifi, hosts)
	return err
}

// Close takes back all that Open did. It may be called twice; not beside Run.
func (l *LAN) Close() error {
	errs := []error{l.removeLocal(), l.state.restoreSysctls(), l.state.remove()}
	for _, f := range []**os.File{&l.arp, &l.nd, &l.groups} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	if l.handle != nil {
		l.handle.Close()
		l.handle = nil
	}
	return errors.Join(errs...)
}

// Ready is closed once requests are answered.
func (l *LAN) Ready() <-chan struct{} { return l.ready }

func (l *LAN) String() string { return "lan " + l.cfg.Interface }

// Run answers requests for the virtual addresses, and keeps the sysctls, until
// ctx ends.
func (l *LAN) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.serve(ctx, l.arp, l.answerARP) })
	if l.nd != nil {
		group.Go(func() error { return l.serve(ctx, l.nd, l.answerND) })
	}
	group.Go(func() error { return l.keep(ctx) })
	l.once.Do(func() { close(l.ready) })
	return group.Wait()
}

// serve answers what comes from one socket until ctx ends.
func (l *LAN) serve(ctx context.Context, from *os.File, answer func(frame []byte) error) error {
	stop := context.AfterFunc(ctx, func() { from.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := from.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // told once when the link goes down; the socket lives on
		case err != nil:
			return fmt.Errorf("lan: read from %s: %w", l.cfg.Interface, err)
		}
		if err := answer(buf[:n]); err != nil && !lost(err) {
			return err
		}
	}
	return nil
}

// keep puts right what somebody else has changed: a reload of sysctl.conf, or
// udev's for an interface that came anew.
func (l *LAN) keep(ctx context.Context) error {
	for task.Pause(ctx, keepEvery) {
		changed, err := l.keepSettings()
		if err != nil {
			changed = append(changed, err.Error())
		}
		for _, what := range changed {
			l.restored.Add(1)
			if l.cfg.Changed != nil {
				l.cfg.Changed(what)
			}
		}
	}
	return nil
}

// lost reports whether a frame could not be sent for a reason that passes.
func lost(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENXIO)
}

func (l *LAN) isVIP(a netip.Addr) bool {
	for _, v := range l.cfg.VIPs {
		if v.Contains(a) {
			return true
		}
	}
	return false
}

// conflict counts somebody else's claim to a virtual address. Another director
// may be it that answered before this one.
func (l *LAN) conflict(addr netip.Addr, mac [6]byte) {
	if l.cfg.Own {
		return
	}
	l.conflicts.Add(1)
	if l.cfg.Claimed != nil {
		l.cfg.Claimed(addr, mac[:])
	}
}

// asked counts a request for a virtual address, and reports whether this
// director is the one to answer it.
func (l *LAN) asked(sender netip.Addr) bool {
	l.requests.Add(1)
	return l.cfg.Answer != nil && l.cfg.Answer(sender)
}

func (l *LAN) answerARP(frame []byte) error {
	p, err := parseARP(frame)
	if err != nil {
		l.malformed.Add(1)
		return nil
	}
	if l.isVIP(p.sender) && p.senderMAC != l.mac {
		l.conflict(p.sender, p.senderMAC)
		return nil
	}
	if p.op != opRequest || p.sender == p.target || !l.isVIP(p.target) || !unicast(p.senderMAC) || !l.asked(p.sender) {
		return nil
	}
	reply := arpPacket{op: opReply, senderMAC: l.mac, sender: p.target, targetMAC: p.senderMAC, target: p.sender}
	if err := l.send(l.arp, reply.appendFrame, p.senderMAC); err != nil {
		return err
	}
	l.answers.Add(1)
	return nil
}

// answerND answers a solicitation as RFC 4861 section 7.2.4 says.
func (l *LAN) answerND(frame []byte) error {
	p, err := parseND(frame)
	if err != nil {
		l.malformed.Add(1)
		return nil
	}
	claims := p.kind == advertisement && l.isVIP(p.target) || p.kind == solicitation && l.isVIP(p.src)
	if claims && p.mac != l.mac {
		claimed := p.target
		if p.kind == solicitation {
			claimed = p.src
		}
		l.conflict(claimed, p.mac)
		return nil
	}
	if p.kind != solicitation || !l.isVIP(p.target) || p.src == p.target || !l.asked(p.src) {
		return nil
	}
	reply := ndPacket{kind: advertisement, flags: flagSolicited | flagOverride, src: p.target, dst: p.src, target: p.target, mac: l.mac}
	to := p.mac
	switch {
	case p.src == unspecified: // somebody wants the address (RFC 4862 section 5.4.3)
		reply.flags, reply.dst, to = flagOverride, allNodes, multicastMAC(allNodes)
	case !unicast(to):
		to = [6]byte(frame[6:])
	}
	if !unicast(to) && reply.dst != allNodes {
		l.malformed.Add(1)
		return nil
	}
	if err := l.send(l.nd, reply.appendFrame, to); err != nil {
		return err
	}
	l.answers.Add(1)
	return nil
}

// Announce tells the LAN the shared MAC of every virtual address (an ARP
// announcement, RFC 5227 section 2.3; an unsolicited advertisement, RFC 4861
// section 7.2.6), so that caches which hold a director's own MAC forget it. The
// addresses of a network are not announced: they are routed here.
func (l *LAN) Announce() error {
	for _, v := range l.cfg.VIPs {
		var err error
		switch vip := v.Addr(); {
		case !v.IsSingleIP():
		case vip.Is4():
			p := arpPacket{op: opRequest, senderMAC: l.mac, sender: vip, target: vip}
			err = l.send(l.arp, p.appendFrame, broadcast)
		default:
			p := ndPacket{kind: advertisement, flags: flagOverride, src: vip, dst: allNodes, target: vip, mac: l.mac}
			err = l.send(l.nd, p.appendFrame, multicastMAC(allNodes))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends a frame from the interface's own MAC, never the shared one.
func (l *LAN) send(on *os.File, appendFrame func(b []byte, dst, src [6]byte) []byte, dst [6]byte) error {
	link, err := l.handle.LinkByIndex(l.ifindex)
	if err != nil {
		return fmt.Errorf("lan: interface %s: %w", l.cfg.Interface, err)
	}
	own := link.Attrs().HardwareAddr
	if len(own) != 6 || [6]byte(own) == l.mac && !l.cfg.Own {
		return fmt.Errorf("lan: interface %s has the address %v: nothing may be sent from the shared MAC", l.cfg.Interface, own)
	}
	var buf [ndLen]byte
	if _, err := on.Write(appendFrame(buf[:0], dst, [6]byte(own))); err != nil {
		return fmt.Errorf("lan: send on %s: %w", l.cfg.Interface, err)
	}
	return nil
}

// Stats counts ARP packets and neighbour messages.
type Stats struct {
	Requests  uint64 // for a virtual address
	Answers   uint64 // of which this director answered
	Conflicts uint64 // somebody else says that a virtual address is its own
	Malformed uint64
	Restored  uint64 // sysctls that somebody had changed
}

// Stats returns the counts since Open.
func (l *LAN) Stats() Stats {
	return Stats{l.requests.Load(), l.answers.Load(), l.conflicts.Load(), l.malformed.Load(), l.restored.Load()}
}
