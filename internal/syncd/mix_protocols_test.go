package syncd

import (
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/testnet"
)

// Protocols of the mix that package net does not know.

// ipsec opens what IPVS makes an entry of UDP port 500 for, and packets of ESP
// and AH, which have none of their own and follow it.
func (l *mixLAN) ipsec() {
	l.flow("IKE", net.Dialer{LocalAddr: &net.UDPAddr{Port: 500}}, "udp4", testVIP+":500", nil)
	l.flow("ESP", net.Dialer{}, "ip4:esp", testVIP, nil)
	l.flow("AH", net.Dialer{}, "ip4:51", testVIP, nil)
}

// sctpSocket is bound to one address, so that the other side is told of no
// other.
func sctpSocket(at netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, sockaddr(at))
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}

const sctpPort = 9

func (l *mixLAN) listenSCTP(vip string) {
	if l.lacks["sctp"] {
		return
	}
	for _, i := range []int{nodeClient, nodeServer} { // heartbeats would be packets that nobody sent
		l.run(i, "sysctl", "-qw", "net.sctp.hb_interval=3600000")
	}
	var ln net.Listener
	must(l.t, testnet.Within(l.Nodes[nodeServer], func() error {
		fd, err := sctpSocket(netip.AddrPortFrom(netip.MustParseAddr(vip), sctpPort))
		f := os.NewFile(uintptr(fd), "sctp")
		defer f.Close() // FileListener has its own
		if err != nil {
			return err
		}
		if err := unix.Listen(fd, 8); err != nil {
			return err
		}
		ln, err = net.FileListener(f)
		return err
	}))
	l.answerAll(ln)
}

// sctp opens an association with a virtual address, from one of its family.
func (l *mixLAN) sctp(from, vip string) {
	l.add("SCTP "+from, nil, func() (net.Conn, error) {
		fd, err := sctpSocket(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		f := os.NewFile(uintptr(fd), "sctp")
		defer f.Close() // FileConn has its own
		if err != nil {
			return nil, err
		}
		patience := unix.NsecToTimeval(int64(20 * time.Second))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
			return nil, err
		}
		if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(netip.MustParseAddr(vip), sctpPort))); err != nil {
			return nil, os.NewSyscallError("connect", err)
		}
		return net.FileConn(f)
	})
}
