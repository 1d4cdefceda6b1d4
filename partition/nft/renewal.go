package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// A datagram of the renewal, after the UDP header:
//
//	 0                16    17        20                28
//	+----------------+-----+---------+-----------------+
//	| secret         | op  | 0 0 0   | n, big-endian   |
//	+----------------+-----+---------+-----------------+
//
// The rules read the lower half of n: the set armed is keyed by 32 bits, and
// no two heartbeats 2^32 apart are ever armed together.
const (
	renewalSecret    = 16
	renewalOp        = 16
	renewalHeartbeat = 24
	renewalLen       = 28

	udpHeader = 8

	opArm     = 'A'
	opConfirm = 'C'
)

// A renewer sends the datagrams. Its socket is connected to itself.
type renewer struct {
	mu  sync.Mutex
	fd  int // -1 when closed
	buf [renewalLen]byte
	in  [renewalLen]byte // swallows what came back
}

func newRenewer(addr netip.AddrPort, secret [renewalSecret]byte) (*renewer, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("nft: open a socket: %w", err)
	}
	r := &renewer{fd: fd}
	copy(r.buf[:], secret[:])
	self := &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	switch err := unix.Bind(fd, self); {
	case errors.Is(err, unix.EADDRINUSE):
		unix.Close(fd)
		return nil, fmt.Errorf("nft: %v is taken: another saru serves this share in this network namespace; stop it first: %w", addr, err)
	case err != nil:
		unix.Close(fd)
		return nil, fmt.Errorf("nft: bind %v: %w", addr, err)
	}
	if err := unix.Connect(fd, self); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nft: connect to %v: %w; is the loopback interface up?", addr, err)
	}
	return r, nil
}

// send sends one datagram and reports whether a rule consumed it: the drop of
// an output chain is the sender's EPERM. It does not allocate.
func (r *renewer) send(op byte, n uint64) (consumed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return false, unix.EBADF
	}
	r.buf[renewalOp] = op
	binary.BigEndian.PutUint64(r.buf[renewalLen-8:], n)
	for {
		_, err = unix.Write(r.fd, r.buf[:])
		if err != unix.EINTR {
			break
		}
	}
	switch err {
	case unix.EPERM:
		return true, nil
	case nil:
		for {
			if k, err := unix.Read(r.fd, r.in[:]); k <= 0 && err != unix.EINTR {
				return false, nil
			}
		}
	}
	return false, err
}

func (r *renewer) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return nil
	}
	fd := r.fd
	r.fd = -1
	return unix.Close(fd)
}
