package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/multicast"
)

// DefaultGroup is where nodes meet unless told otherwise, DefaultGroup6 an
// example for IPv6. The kernel's own sync threads use 224.0.0.81:8848.
var (
	DefaultGroup  = netip.MustParseAddrPort("239.192.0.81:8849")
	DefaultGroup6 = netip.MustParseAddrPort("[ff12::81]:8849")
)

const (
	// receiveBatch datagrams are read by one system call: one at a time lost
	// 2.4 % at 130,000/s where batches of 16 lost none.
	receiveBatch  = 32
	receiveBuffer = 16 << 20 // bytes asked of the kernel, which doubles it
)

// A UDP is the Transport of real networks: multicast on one interface, IPv4 or
// IPv6, or unicast to a list of peers, and TCP on the same port.
//
// It binds to the one address that peers know it by, never to all: what comes
// from it has that source, other addresses of the machine (VIPs) do not answer
// on the port, and programs may have the port there.
//
// An interface that vanishes is waited for (reopen.go).
type UDP struct {
	cfg   UDPConfig
	own   *net.UDPConn // sends everything, hears unicast
	group *net.UDPConn // hears the group; nil with a list of peers
	ln    net.Listener
	pc    multicast.Conn // of own
	to    []*net.UDPAddr
	addr  netip.AddrPort

	mu   sync.Mutex
	ms   []ipv4.Message // for sending
	away error          // why there are no sockets, if there are none
}

// UDPConfig says where a UDP sends and listens.
type UDPConfig struct {
	Interface *net.Interface   // of the group; with Peers it may be nil
	Group     netip.AddrPort   // its port is where all nodes listen
	Peers     []netip.AddrPort // of one address family
	Log       *slog.Logger     // nil: none
}

// IsIPv6 reports whether all is IPv6.
func (cfg *UDPConfig) IsIPv6() bool {
	if len(cfg.Peers) > 0 {
		return cfg.Peers[0].Addr().Is6()
	}
	return cfg.Group.Addr().Is6()
}

// NewUDP opens the sockets. A port that is taken and an interface that cannot
// do multicast are bad input.
func NewUDP(cfg UDPConfig) (*UDP, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u := &UDP{cfg: cfg, ms: make([]ipv4.Message, receiveBatch)}
	if err := u.open(); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}

func (u *UDP) open() error {
	from, err := u.cfg.source()
	if err != nil {
		return err
	}
	u.addr = netip.AddrPortFrom(from, u.cfg.Group.Port())
	if u.ln, err = net.Listen("tcp", u.addr.String()); err != nil {
		return taken("TCP", u.addr, err)
	}
	for _, p := range u.cfg.Peers {
		u.to = append(u.to, net.UDPAddrFromAddrPort(p))
	}
	if len(u.to) == 0 {
		// No zone is needed: the sockets are bound to the interface.
		u.to = []*net.UDPAddr{net.UDPAddrFromAddrPort(u.cfg.Group)}
	}
	return u.openSockets()
}

func (u *UDP) openSockets() (err error) {
	if u.own, err = u.cfg.listen(u.addr); err != nil {
		return err
	}
	u.pc = multicast.NewConn(u.own, u.cfg.IsIPv6())
	if !u.Group() {
		return nil
	}
	if u.group, err = u.cfg.listen(u.cfg.Group); err != nil {
		return err
	}
	if err := u.join(u.cfg.Interface); err != nil {
		return config.Bad("sync.interface = %q: cannot do multicast to %v: %v; use an interface that can, or list the other directors in sync.peers", u.cfg.Interface.Name, u.cfg.Group, err)
	}
	return nil
}

// source returns the address that this node is known by: the interface's
// first, of IPv6 the first that is not of the link alone, if there is one; or
// without an interface what the system uses towards the first peer.
func (cfg *UDPConfig) source() (netip.Addr, error) {
	if cfg.Interface == nil {
		c, err := net.Dial("udp", cfg.Peers[0].String()) // sends nothing
		if err != nil {
			return netip.Addr{}, config.Bad("sync.peers: no way to %v: %v; mend the routes, or name sync.interface", cfg.Peers[0], err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
	}
	addrs, err := cfg.Interface.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("addresses of %s: %w", cfg.Interface.Name, err)
	}
	var found netip.Addr
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().Is6() != cfg.IsIPv6() {
			continue
		}
		if !p.Addr().IsLinkLocalUnicast() || !cfg.IsIPv6() {
			return p.Addr(), nil
		}
		found = p.Addr().WithZone(cfg.Interface.Name)
	}
	if !found.IsValid() {
		// It may get one still, as at boot: so whoever starts this tries again.
		return found, fmt.Errorf("sync.interface = %q: has no %s address; give it one", cfg.Interface.Name, map[bool]string{false: "IPv4", true: "IPv6"}[cfg.IsIPv6()])
	}
	return found, nil
}

// listen binds to exactly at. What comes in on another interface than that of
// the peers is not from a peer. No datagram is fragmented.
func (cfg *UDPConfig) listen(at netip.AddrPort) (*net.UDPConn, error) {
	how := multicast.Config{Buffer: receiveBuffer, DontFragment: true}
	if cfg.Interface != nil {
		how.Device = cfg.Interface.Name
	}
	c, err := multicast.Listen(at, how)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, taken("UDP", at, err)
	}
	return c, err
}

func taken(what string, at netip.AddrPort, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return config.Bad("sync.group: %s port %d is taken on %v; stop the other syncd or program that has it, or name another port", what, at.Port(), at.Addr())
	}
	return fmt.Errorf("listen on %s %v: %w", what, at, err)
}

func (u *UDP) join(ifi *net.Interface) error {
	group := multicast.NewConn(u.group, u.cfg.IsIPv6())
	return errors.Join(group.JoinGroup(ifi, u.to[0]), multicast.OnLink(u.pc, ifi))
}

// Group implements Transport.
func (u *UDP) Group() bool { return len(u.cfg.Peers) == 0 }

// Close gives the sockets back. The Session closes the Listener when it ends.
func (u *UDP) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	errs := []error{u.closeSocketsLocked()}
	if u.ln != nil {
		if err := u.ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Port is where this node hears datagrams and streams.
func (u *UDP) Port() uint16 { return u.addr.Port() }

// What IPv4 or IPv6 and UDP add to a datagram, in bytes.
const (
	ipUDPHeaders   = 20 + 8
	ipv6UDPHeaders = 40 + 8
)

// Headers implements Transport.
func (u *UDP) Headers() int {
	if u.cfg.IsIPv6() {
		return ipv6UDPHeaders
	}
	return ipUDPHeaders
}

// Listener accepts peers' streams.
func (u *UDP) Listener() net.Listener { return u.ln }

// Dial connects to a peer.
func (u *UDP) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(u.addr.Addr(), 0))}
	return d.DialContext(ctx, "tcp", to.String())
}

// Broadcast sends to the group, or to each peer.
func (u *UDP) Broadcast(datagrams [][]byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for _, to := range u.to {
		errs = append(errs, u.sendLocked(datagrams, to))
	}
	return errors.Join(errs...)
}

// SendTo sends to one peer.
func (u *UDP) SendTo(datagrams [][]byte, to netip.AddrPort) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sendLocked(datagrams, net.UDPAddrFromAddrPort(to))
}

func (u *UDP) sendLocked(datagrams [][]byte, to *net.UDPAddr) (tooLarge error) {
	if u.pc == nil {
		return errAway
	}
	for len(datagrams) > 0 {
		n := min(len(datagrams), len(u.ms))
		for i, d := range datagrams[:n] {
			if u.ms[i].Buffers == nil {
				u.ms[i].Buffers = make([][]byte, 1)
			}
			u.ms[i].Buffers[0], u.ms[i].Addr = d, to
		}
		sent, err := u.pc.WriteBatch(u.ms[:n], 0)
		switch {
		case errors.Is(err, unix.EMSGSIZE): // the first of them is too large; the others may not be
			tooLarge = fmt.Errorf("send %d bytes to %v: %w", len(datagrams[0]), to, err)
			sent = 1
		case err != nil:
			return fmt.Errorf("send to %v: %w", to, err)
		}
		datagrams = datagrams[sent:]
	}
	return tooLarge
}

// A Deliverer takes a datagram, and whether it came through the group.
type Deliverer = func(datagram []byte, from netip.AddrPort, group bool)

// receive hands on what comes to c, one at a time, until it fails.
func receive(c *net.UDPConn, pc multicast.Conn, one *sync.Mutex, group bool, deliver Deliverer) error {
	ms := make([]ipv4.Message, receiveBatch)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, MaxDatagram)}
	}
	for {
		n, err := pc.ReadBatch(ms, 0)
		if err != nil {
			return fmt.Errorf("receive from peers on %v: %w", c.LocalAddr(), err)
		}
		one.Lock()
		for i := range ms[:n] {
			if from, ok := ms[i].Addr.(*net.UDPAddr); ok {
				ap := from.AddrPort()
				deliver(ms[i].Buffers[0][:ms[i].N], netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), group)
			}
		}
		one.Unlock()
	}
}
