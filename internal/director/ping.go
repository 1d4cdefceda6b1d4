package director

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// A pinger asks the ping nodes, so that a director whose only peer has gone
// deaf knows that its own sending works, and one that reaches fewer of them
// than others gives its share to these. It is a task.
type pinger struct {
	nodes  []netip.Addr
	missed []int // per node: rounds since it last answered
	every  time.Duration
	engine *Engine
	conn   *icmp.PacketConn
	up     chan struct{}
}

func openPinger(s *Settings, e *Engine) (*pinger, error) {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("cluster.ping: open an ICMP socket: %w", err)
	}
	missed := make([]int, len(s.Ping))
	for i := range missed {
		missed[i] = reachRounds
	}
	return &pinger{s.Ping, missed, s.Lease / 3, e, conn, make(chan struct{})}, nil
}

// Ready is closed when the nodes are asked.
func (p *pinger) Ready() <-chan struct{} { return p.up }

func (p *pinger) String() string { return "ping" }

// Run asks until ctx ends. Only answers to the last two questions count.
func (p *pinger) Run(ctx context.Context) error {
	close(p.up)
	id := os.Getpid() & 0xffff
	buf := make([]byte, 256)
	for seq := uint16(1); ctx.Err() == nil; seq++ {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: int(seq)}}
		b, err := m.Marshal(nil)
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		for _, n := range p.nodes {
			// A node that cannot be reached does not answer; that is all we ask.
			_, _ = p.conn.WriteTo(b, &net.IPAddr{IP: n.AsSlice()})
		}
		if err := p.listen(ctx, buf, id, seq); err != nil {
			return err
		}
		p.tellReach(ctx)
	}
	return nil
}

// reachRounds is how many questions in a row a node may leave unanswered and
// still counts as reached.
const reachRounds = 3

// tellReach ends a round.
func (p *pinger) tellReach(ctx context.Context) {
	reached := 0
	for i := range p.missed {
		if p.missed[i] < reachRounds {
			reached++
			p.missed[i]++
		}
	}
	p.engine.post(ctx, func(now time.Duration) { p.engine.core.SetReach(now, reached) })
}

// listen hears answers until the next question is due.
func (p *pinger) listen(ctx context.Context, buf []byte, id int, seq uint16) error {
	if err := p.conn.SetReadDeadline(time.Now().Add(p.every)); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	for ctx.Err() == nil {
		n, from, err := p.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		a, ok := from.(*net.IPAddr)
		if !ok || n < 8 || buf[0] != byte(ipv4.ICMPTypeEchoReply) || int(binary.BigEndian.Uint16(buf[4:])) != id {
			continue
		}
		node, _ := netip.AddrFromSlice(a.IP)
		i := slices.Index(p.nodes, node.Unmap())
		if i < 0 {
			continue
		}
		if seq-binary.BigEndian.Uint16(buf[6:]) <= 1 {
			p.missed[i] = 0
			p.engine.post(ctx, func(now time.Duration) { p.engine.core.PingOK(now) })
		}
	}
	return nil
}

func (p *pinger) close() error { return p.conn.Close() }
