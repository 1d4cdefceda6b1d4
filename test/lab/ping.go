package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// pingInterval is the time between two echo requests of Ping.
const pingInterval = 100 * time.Millisecond

// ErrNoAnswer says that nothing answered a Ping.
var ErrNoAnswer = errors.New("no answer")

// Ping sends ICMP echo requests from the node until one is answered, for as
// long as given; then its error is ErrNoAnswer.
func (n *Node) Ping(to netip.Addr, wait time.Duration) error {
	var conn *icmp.PacketConn
	err := n.Do(func() (err error) {
		conn, err = icmp.ListenPacket("ip4:icmp", n.Addr.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: ping %v: %w", n.Name, to, err)
	}
	defer conn.Close()
	for end := time.Now().Add(wait); time.Now().Before(end); {
		if answered, err := pingOnce(conn, to); err != nil {
			return fmt.Errorf("%s: ping %v: %w", n.Name, to, err)
		} else if answered {
			return nil
		}
	}
	return fmt.Errorf("%s: ping %v for %v: %w", n.Name, to, wait, ErrNoAnswer)
}

// pingOnce sends one request and looks for a reply until the next is due.
func pingOnce(conn *icmp.PacketConn, to netip.Addr) (bool, error) {
	request := icmp.Message{
		Type: ipv4.ICMPTypeEcho,
		Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Data: []byte("lab")},
	}
	text, err := request.Marshal(nil)
	if err != nil {
		return false, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(pingInterval)); err != nil {
		return false, err
	}
	// An unreachable host is what a ping is to find out, not a failure of it.
	_, _ = conn.WriteTo(text, &net.IPAddr{IP: to.AsSlice()})
	buf := make([]byte, 1500)
	for {
		count, from, err := conn.ReadFrom(buf)
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return false, nil
			}
			return false, err
		}
		if from.String() != to.String() {
			continue
		}
		const protocolICMP = 1
		if m, err := icmp.ParseMessage(protocolICMP, buf[:count]); err == nil && m.Type == ipv4.ICMPTypeEchoReply {
			return true, nil
		}
	}
}
