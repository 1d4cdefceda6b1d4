package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
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
// and opens what passes with the cluster's key: when each heartbeat was sent,
// when the first answer to it came, and when others were heard. All are the
// kernel's own times.
type capture struct {
	raw    syscall.RawConn
	missed int // frames that the kernel had no room for

	mu     sync.Mutex
	id     membership.NodeID
	sent   map[beat]time.Time
	acked  map[beat]time.Time
	others []time.Time // when a heartbeat of another came
	keep   int         // how many of what passes, sealed as it is, to keep
	kept   [][]byte    // those
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
	c.raw, err = file.SyscallConn()
	n.must(err)
	n.goUntilEnd(func() { file.Close() }, func() { c.read(keys) })
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
func (c *capture) read(keys *seal.Keyring) {
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
		if c.raw.Read(func(fd uintptr) bool {
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
		if m.From == c.id {
			earliest(c.sent, beat{m.Inc, m.N}, at)
		} else {
			c.others = append(c.others, at)
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

// grantAge returns how long before t the newest heartbeat was sent that had its
// grant by then: the age of the grant that a packet accepted at t was accepted
// under.
func (c *capture) grantAge(t time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.others, time.Time.Compare) // two paths, almost in order
	age := time.Hour
	for b, sent := range c.sent {
		if sent.After(t) || t.Sub(sent) >= age {
			continue
		}
		if at, ok := c.acked[b]; ok && !at.After(t) || !c.silence(sent).After(t) {
			age = t.Sub(sent)
		}
	}
	return age
}

// silence returns from when on a heartbeat sent at t needs nobody's grant: none
// of the others was heard for an interval, as when all are held up at once. Two
// ticks without a heartbeat, and who keeps its share does not wait for an answer
// (membership, Slow machines); two ticks are at least about an interval apart.
func (c *capture) silence(t time.Time) time.Time {
	i, _ := slices.BinarySearchFunc(c.others, t, time.Time.Compare)
	last := time.Time{}
	if i > 0 {
		last = c.others[i-1]
	}
	for _, next := range c.others[i:] {
		if next.Sub(last) > pace.lease/6 {
			break
		}
		last = next
	}
	if end := last.Add(pace.lease / 6); end.After(t) {
		return end
	}
	return t
}

// lost returns how many frames the kernel had no room for.
func (c *capture) lost() int {
	_ = c.raw.Control(func(fd uintptr) {
		// Asked for, they are counted anew (packet(7)).
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.missed += int(st.Drops)
		}
	})
	return c.missed
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
	c.others = slices.DeleteFunc(c.others, t.After)
}
