package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"saru/internal/seal"
	"saru/membership"
	"saru/test/datagrams"
)

// A capture listens at a director's port of the switch, outside the director,
// and opens what it says with the cluster's key: when each heartbeat was sent,
// and when the first answer to it came. Both are the kernel's own times.
type capture struct {
	mu    sync.Mutex
	id    membership.NodeID
	sent  map[beat]time.Time
	acked map[beat]time.Time
	keep  int      // how many of what passes, sealed as it is, to keep
	kept  [][]byte // those
}

type beat struct{ inc, n uint64 }

const (
	heartbeatType = 0x88b5
	heartbeatPort = 7947
)

// heartbeats passes frames of heartbeats and UDP to their port, of which no
// later fragment.
var heartbeats = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: heartbeatType, SkipTrue: 7},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 7},
	bpf.LoadAbsolute{Off: 23, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 5},
	bpf.LoadMemShift{Off: 14},
	bpf.LoadIndirect{Off: 16, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: heartbeatPort, SkipTrue: 1},
	bpf.Jump{Skip: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

// capture begins to listen at n's port.
func (n *node) capture() *capture {
	n.Helper()
	c := &capture{id: membership.ID(n.name), sent: map[beat]time.Time{}, acked: map[beat]time.Time{}}
	keys, err := seal.LoadKeyring(n.dir + "/key")
	n.must(err)
	filter, err := bpf.Assemble(heartbeats)
	n.must(err)
	var file *os.File
	n.must(in(n.sw, func() error {
		port, err := net.InterfaceByName(n.name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "capture")
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: sockFilters(filter)}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return err
		}
		// Room for all that comes while this process has no turn.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: port.Index})
	}))
	raw, err := file.SyscallConn()
	n.must(err)
	n.goUntilEnd(func() { file.Close() }, func() { c.read(raw, keys) })
	return c
}

func sockFilters(raw []bpf.RawInstruction) *unix.SockFilter {
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return &out[0]
}

// read notes packets until the socket is closed. What goes to the director and
// what comes from it have replay windows of their own, as has each path.
func (c *capture) read(raw syscall.RawConn, keys *seal.Keyring) {
	var openers [2][2]*seal.Opener
	for i := range openers {
		openers[i] = [2]*seal.Opener{seal.NewOpener(keys, "heartbeat"), seal.NewOpener(keys, "heartbeat")}
	}
	var decoder membership.Decoder
	buf, oob := make([]byte, 4096), make([]byte, 128)
	for {
		var k, o int
		var from unix.Sockaddr
		var err error
		if raw.Read(func(fd uintptr) bool {
			k, o, _, from, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return err != unix.EAGAIN
		}) != nil {
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		at, stamped := datagrams.Stamp(oob[:o])
		if err != nil || !ok || !stamped || k < 42 {
			continue
		}
		out, frame, sealed := 0, 0, buf[42:k] // Ethernet, IPv4, UDP
		if link.Pkttype == unix.PACKET_OUTGOING {
			out = 1
		}
		if binary.BigEndian.Uint16(buf[12:]) == heartbeatType {
			frame, sealed = 1, buf[14:k]
		}
		plain, _, _, err := openers[out][frame].Open(nil, sealed)
		if err != nil {
			continue // a test may send what does not open
		}
		if m, err := decoder.Decode(plain); err == nil {
			c.note(m, at, sealed)
		}
	}
}

func (c *capture) note(m membership.Message, at time.Time, sealed []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) < c.keep {
		c.kept = append(c.kept, bytes.Clone(sealed))
	}
	switch m := m.(type) {
	case *membership.Heartbeat:
		if b := (beat{m.Inc, m.N}); m.From == c.id {
			earliest(c.sent, b, at)
		}
	case *membership.Ack:
		if b := (beat{m.ToInc, m.N}); m.To == c.id && !m.Granted.Empty() {
			earliest(c.acked, b, at)
		}
	}
}

func earliest(m map[beat]time.Time, b beat, at time.Time) {
	if t, known := m[b]; !known || at.Before(t) {
		m[b] = at
	}
}

// grantAge returns how long before t the newest heartbeat was sent that
// somebody had granted by then: the age of the grant that a packet accepted at
// t was accepted under.
func (c *capture) grantAge(t time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := time.Hour
	for b, at := range c.acked {
		if sent, ok := c.sent[b]; ok && !at.After(t) {
			age = min(age, t.Sub(sent))
		}
	}
	return age
}

// sentAge returns how long before t the newest heartbeat was sent.
func (c *capture) sentAge(t time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := time.Hour
	for _, sent := range c.sent {
		if !sent.After(t) {
			age = min(age, t.Sub(sent))
		}
	}
	return age
}

// record returns some of what passes from now on, sealed as it is.
func (c *capture) record(n int) [][]byte {
	c.mu.Lock()
	c.keep, c.kept = n, nil
	c.mu.Unlock()
	for {
		time.Sleep(pace.lease / 6)
		c.mu.Lock()
		kept := c.kept
		c.mu.Unlock()
		if len(kept) == n {
			return kept
		}
	}
}

// forget drops what is older than t: nothing accepted from now on can have
// been granted then.
func (c *capture) forget(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, at := range c.sent {
		if at.Before(t) {
			delete(c.sent, b)
			delete(c.acked, b)
		}
	}
}
