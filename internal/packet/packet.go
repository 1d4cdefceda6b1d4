// Package packet has what sockets of family AF_PACKET need (packet(7)), and what
// the standard library keeps to itself.
package packet

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Only lets a socket receive nothing but the packets of which the program does
// not return 0, and of those as many bytes as it returns.
func Only(fd int, program ...bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("socket filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)})
}

// NetworkOrder returns v as the kernel's __be16 reads in this host's order, and
// the other way round.
func NetworkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
