package datagrams

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const firstPort = 20000

// Listen opens a socket for a service's port, in the namespace of the calling
// thread, which notes when the kernel took a datagram in.
func Listen(port uint16) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			// Room for all that comes while this process has no turn.
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		})
		if cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Receive notes what the director called name accepts on c until c is closed.
func (l *Ledger) Receive(c *net.UDPConn, name string) {
	buf, oob := make([]byte, 64), make([]byte, 128)
	for {
		k, o, _, _, err := c.ReadMsgUDP(buf, oob)
		if err != nil {
			return
		}
		if at, ok := Stamp(oob[:o]); ok && k >= 4 {
			l.accept(binary.BigEndian.Uint32(buf), Acceptance{name, at})
		}
	}
}

// Stamp returns the time at which the kernel took a packet in, or sent it, from
// the control messages that came with it (SO_TIMESTAMPNS, socket(7)).
func Stamp(oob []byte) (time.Time, bool) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range all {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), true
		}
	}
	return time.Time{}, false
}

// Dial opens a socket for each flow to a service, in the namespace of the
// calling thread.
func (l *Ledger) Dial(to netip.AddrPort) ([]*net.UDPConn, error) {
	var all []*net.UDPConn
	for i := range l.Flows {
		c, err := net.DialUDP("udp4", &net.UDPAddr{Port: firstPort + 7*i}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			Close(all)
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// Close closes all of them.
func Close(all []*net.UDPConn) {
	for _, c := range all {
		c.Close()
	}
}

// Send sends datagrams at a rate a second, one flow after another, until ctx
// ends.
func (l *Ledger) Send(ctx context.Context, flows []*net.UDPConn, rate int) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 0, 4)
	start, sent := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := int(time.Since(start).Seconds() * float64(rate))
		if due > sent+rate/10 {
			sent = due - rate/10 // we were away: no burst
		}
		for ; sent < due; sent++ {
			n := l.send()
			// Refused or unreachable only means that nobody accepts.
			_, _ = flows[int(n)%len(flows)].Write(binary.BigEndian.AppendUint32(buf, n))
		}
	}
}
