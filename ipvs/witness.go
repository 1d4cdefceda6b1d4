package ipvs

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// receipts tell how many injected datagrams have reached the sockets of their
// group.
type receipts interface {
	take() int // those since the last call; does not wait
	close() error
}

// A witness is a socket beside the backup thread's, of the same group and port
// on lo, and connected to the injector's: the kernel gives both each datagram of
// the injector, in one go (net/ipv4/udp.c, __udp4_lib_mcast_deliver). It holds
// as much as the backup thread's may.
type witness int

func newWitness(local netip.AddrPort, injector int) (witness, error) {
	from, err := unix.Getsockname(injector)
	if err != nil {
		return -1, fmt.Errorf("witness: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("witness: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // the backup thread has it too
		unix.BindToDevice(fd, "lo"),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: local.Addr().As4(), Port: int(local.Port())}),
		unix.Connect(fd, from),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("witness: %w", err)
	}
	// What it has no room for would count as lost on the way. Where this is not
	// allowed the system's default has to do, which mostly is as much.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2*windowBytes)
	return witness(fd), nil
}

func (w witness) take() (n int) {
	var first [1]byte
	for {
		if _, err := unix.Read(int(w), first[:]); err != nil {
			return n
		}
		n++
	}
}

func (w witness) close() error { return unix.Close(int(w)) }
