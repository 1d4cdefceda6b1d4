package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"saru/internal/config"
)

// DefaultGroup is where nodes meet unless told otherwise. The kernel's own
// sync threads use 224.0.0.81:8848.
var DefaultGroup = netip.MustParseAddrPort("239.192.0.81:8849")

const (
	// receiveBatch datagrams are read by one system call: one at a time lost
	// 2.4 % at 130,000/s where batches of 16 lost none.
	receiveBatch  = 32
	receiveBuffer = 16 << 20 // bytes asked of the kernel, which doubles it
	maxDatagram   = 9000     // as much as is read of one
)

// A UDP is the Transport of real networks: IPv4 multicast on one interface, or
// unicast to a list of peers, and TCP on the same port.
type UDP struct {
	conn *net.UDPConn
	pc   *ipv4.PacketConn
	ln   net.Listener
	to   []*net.UDPAddr
	port uint16

	mu sync.Mutex
	ms []ipv4.Message // for sending
}

// UDPConfig says where a UDP sends and listens.
type UDPConfig struct {
	Interface *net.Interface // of the group; with Peers it may be nil
	Group     netip.AddrPort // its port is where all nodes listen
	Peers     []netip.AddrPort
}

// NewUDP opens the sockets. A port that is taken and an interface that cannot
// do multicast are bad input.
func NewUDP(cfg UDPConfig) (u *UDP, err error) {
	u = &UDP{port: cfg.Group.Port(), ms: make([]ipv4.Message, receiveBatch)}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	at := net.JoinHostPort("0.0.0.0", fmt.Sprint(u.port))
	pc, err := net.ListenPacket("udp4", at)
	if err != nil {
		return nil, taken("UDP", at, err)
	}
	u.conn = pc.(*net.UDPConn)
	u.pc = ipv4.NewPacketConn(u.conn)
	if u.ln, err = net.Listen("tcp4", at); err != nil {
		return nil, taken("TCP", at, err)
	}
	if err := u.setBuffer(); err != nil {
		return nil, fmt.Errorf("receive buffer: %w", err)
	}
	if cfg.Interface != nil {
		// What comes in elsewhere is not from a peer.
		if err := u.control(func(fd int) error { return unix.BindToDevice(fd, cfg.Interface.Name) }); err != nil {
			return nil, fmt.Errorf("bind to interface %s: %w", cfg.Interface.Name, err)
		}
	}
	for _, p := range cfg.Peers {
		u.to = append(u.to, net.UDPAddrFromAddrPort(p))
	}
	if len(u.to) > 0 {
		return u, nil
	}
	u.to = []*net.UDPAddr{net.UDPAddrFromAddrPort(cfg.Group)}
	if err := u.join(cfg.Interface, u.to[0]); err != nil {
		return nil, config.Bad("sync.interface = %q: cannot do multicast to %v: %v; give it an IPv4 address and bring it up, or list the other directors in sync.peers", cfg.Interface.Name, cfg.Group, err)
	}
	return u, nil
}

func taken(what, at string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return config.Bad("sync.group: %s port %s is taken; stop the other syncd or program that has it, or name another port", what, at)
	}
	return fmt.Errorf("listen on %s %s: %w", what, at, err)
}

func (u *UDP) setBuffer() error {
	return u.control(func(fd int) error {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) == nil {
			return nil
		}
		// Without CAP_NET_ADMIN as much as net.core.rmem_max allows.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	})
}

func (u *UDP) control(do func(fd int) error) error {
	rc, err := u.conn.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := rc.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

func (u *UDP) join(ifi *net.Interface, group *net.UDPAddr) error {
	// Else the socket hears every group that anybody on this machine joined
	// (ip(7), IP_MULTICAST_ALL).
	err := u.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
	})
	return errors.Join(err,
		u.pc.JoinGroup(ifi, group),
		u.pc.SetMulticastInterface(ifi),
		u.pc.SetMulticastTTL(1),
		u.pc.SetMulticastLoopback(false))
}

// Close gives the sockets back. The Session closes them too when it ends.
func (u *UDP) Close() error {
	var errs []error
	if u.conn != nil {
		errs = append(errs, u.conn.Close())
	}
	if u.ln != nil {
		if err := u.ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Port is where this node hears datagrams and streams.
func (u *UDP) Port() uint16 { return u.port }

// Listener accepts peers' streams.
func (u *UDP) Listener() net.Listener { return u.ln }

// Dial connects to a peer.
func (u *UDP) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp4", to.String())
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

func (u *UDP) sendLocked(datagrams [][]byte, to *net.UDPAddr) error {
	for len(datagrams) > 0 {
		n := min(len(datagrams), len(u.ms))
		for i, d := range datagrams[:n] {
			if u.ms[i].Buffers == nil {
				u.ms[i].Buffers = make([][]byte, 1)
			}
			u.ms[i].Buffers[0], u.ms[i].Addr = d, to
		}
		sent, err := u.pc.WriteBatch(u.ms[:n], 0)
		if err != nil {
			return fmt.Errorf("send to %v: %w", to, err)
		}
		datagrams = datagrams[sent:]
	}
	return nil
}

// Receive delivers datagrams until ctx ends.
func (u *UDP) Receive(ctx context.Context, deliver func(datagram []byte, from netip.AddrPort)) error {
	stop := context.AfterFunc(ctx, func() { u.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ms := make([]ipv4.Message, receiveBatch)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, maxDatagram)}
	}
	for {
		n, err := u.pc.ReadBatch(ms, 0)
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive from peers: %w", err)
		}
		for i := range ms[:n] {
			from, ok := ms[i].Addr.(*net.UDPAddr)
			if ok {
				ap := from.AddrPort()
				deliver(ms[i].Buffers[0][:ms[i].N], netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
			}
		}
	}
}
