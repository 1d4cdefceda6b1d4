package ipvs

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// procUDP lists this network namespace's UDP sockets, the kernel's own too.
const procUDP = "/proc/thread-self/net/udp"

// anyPeer is the remote address of a socket that is not connected.
const anyPeer = "00000000:0000"

// A udpSocket is a line of /proc/net/udp (net/ipv4/udp.c, udp4_format_sock).
type udpSocket struct {
	local netip.AddrPort
	free  bool  // takes datagrams from everybody: not connected
	queue int64 // bytes of memory that wait to be read
	inode uint64
	drops uint64 // datagrams dropped since the socket was opened
}

// backupSocket finds the socket of the backup thread, which is bound to the
// group and port, as our witness is, but not connected.
func backupSocket(local netip.AddrPort) (udpSocket, error) {
	f, err := os.Open(procUDP)
	if err != nil {
		return udpSocket{}, fmt.Errorf("look at the backup thread's socket: %w", err)
	}
	defer f.Close()
	s, err := findUDP(f, local)
	if err != nil {
		return udpSocket{}, fmt.Errorf("look at the backup thread's socket: %s: %w", procUDP, err)
	}
	return s, nil
}

func findUDP(r io.Reader, local netip.AddrPort) (udpSocket, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 13 || f[0] == "sl" {
			continue
		}
		s, err := parseUDP(f)
		if err != nil {
			return udpSocket{}, err
		}
		if s.local == local && s.free {
			return s, nil
		}
	}
	if err := sc.Err(); err != nil {
		return udpSocket{}, err
	}
	return udpSocket{}, fmt.Errorf("no socket on %v: the backup thread does not run", local)
}

func parseUDP(f []string) (udpSocket, error) {
	addr, port, ok := strings.Cut(f[1], ":")
	b, err := hex.DecodeString(addr)
	if !ok || err != nil || len(b) != 4 {
		return udpSocket{}, fmt.Errorf("local address %q", f[1])
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return udpSocket{}, fmt.Errorf("local address %q: %w", f[1], err)
	}
	// The kernel prints the address as a number in its own byte order.
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(b))
	_, rx, ok := strings.Cut(f[4], ":")
	queue, err := strconv.ParseInt(rx, 16, 64)
	if !ok || err != nil {
		return udpSocket{}, fmt.Errorf("queues %q", f[4])
	}
	drops, err := strconv.ParseUint(f[12], 10, 64)
	if err != nil {
		return udpSocket{}, fmt.Errorf("drops %q: %w", f[12], err)
	}
	inode, err := strconv.ParseUint(f[9], 10, 64)
	if err != nil {
		return udpSocket{}, fmt.Errorf("inode %q: %w", f[9], err)
	}
	return udpSocket{netip.AddrPortFrom(netip.AddrFrom4(a), uint16(p)), f[2] == anyPeer, queue, inode, drops}, nil
}
