package director

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
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
	log    *slog.Logger
	nodes  []netip.Addr
	missed []int // per node: rounds since it last answered
	every  time.Duration
	engine *Engine
	conn   *icmp.PacketConn // nil while nobody is to be asked
	next   chan []netip.Addr
	up     chan struct{}
	asked  [2]question // the last two
}

// A question is what one round asks. Answers are not authentic, and that one
// came decides whom a director waits for: so only who saw the question, on its
// way to the node, can answer it.
type question struct {
	seq   uint16
	token [8]byte
}

// ask makes the next question, as the body of an echo request.
func (p *pinger) ask(seq uint16) []byte {
	p.asked[1], p.asked[0] = p.asked[0], question{seq: seq}
	rand.Read(p.asked[0].token[:])
	return p.asked[0].token[:]
}

// answers reports whether an ICMP message answers one of the last two questions.
func (p *pinger) answers(m []byte, id int) bool {
	const header = 8 // RFC 792: type, code, checksum, identifier, sequence number
	if len(m) < header || m[0] != byte(ipv4.ICMPTypeEchoReply) || int(binary.BigEndian.Uint16(m[4:])) != id {
		return false
	}
	seq := binary.BigEndian.Uint16(m[6:])
	return slices.ContainsFunc(p.asked[:], func(q question) bool {
		return q.seq == seq && q.seq != 0 && bytes.Equal(m[header:], q.token[:])
	})
}

func openPinger(log *slog.Logger, s *Settings, e *Engine) (*pinger, error) {
	p := &pinger{log: log, every: s.Lease / 3, engine: e, next: make(chan []netip.Addr, 1), up: make(chan struct{})}
	return p, p.take(s.Ping)
}

// take has other nodes asked from now on.
func (p *pinger) take(nodes []netip.Addr) (err error) {
	if len(nodes) > 0 && p.conn == nil {
		if p.conn, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0"); err != nil {
			return fmt.Errorf("cluster.ping: open an ICMP socket: %w", err)
		}
	}
	p.nodes, p.missed = nodes, make([]int, len(nodes))
	return nil
}

// change has other nodes asked soon. The last change counts.
func (p *pinger) change(nodes []netip.Addr) {
	select {
	case <-p.next:
	default:
	}
	p.next <- nodes
}

// Ready is closed when the nodes are asked.
func (p *pinger) Ready() <-chan struct{} { return p.up }

func (p *pinger) String() string { return "ping" }

// Run asks until ctx ends. Only answers to the last two questions count.
func (p *pinger) Run(ctx context.Context) error {
	close(p.up)
	for i := range p.missed {
		p.missed[i] = reachRounds
	}
	id := os.Getpid() & 0xffff
	buf := make([]byte, 256)
	for seq := uint16(1); ctx.Err() == nil; seq = max(1, seq+1) {
		select {
		case nodes := <-p.next:
			p.retake(ctx, nodes)
		default:
		}
		if len(p.nodes) == 0 {
			select {
			case nodes := <-p.next:
				p.retake(ctx, nodes)
			case <-ctx.Done():
			}
			continue
		}
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: int(seq), Data: p.ask(seq)}}
		b, err := m.Marshal(nil)
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		for _, n := range p.nodes {
			// A node that cannot be reached does not answer; that is all we ask.
			_, _ = p.conn.WriteTo(b, &net.IPAddr{IP: n.AsSlice()})
		}
		if err := p.listen(ctx, buf, id); err != nil {
			return err
		}
		p.tellReach(ctx)
	}
	return nil
}

// retake takes other nodes. Those that were just named count as reached for
// some rounds, lest a change of the list move a share.
func (p *pinger) retake(ctx context.Context, nodes []netip.Addr) {
	if err := p.take(nodes); err != nil {
		p.log.Error("the ping nodes were not changed", "err", err)
		return
	}
	if len(nodes) == 0 {
		p.engine.post(ctx, func(now time.Duration) { p.engine.core.SetReach(now, 0) })
	}
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
func (p *pinger) listen(ctx context.Context, buf []byte, id int) error {
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
		if !ok || !p.answers(buf[:n], id) {
			continue
		}
		node, _ := netip.AddrFromSlice(a.IP)
		i := slices.Index(p.nodes, node.Unmap())
		if i < 0 {
			continue
		}
		p.missed[i] = 0
		p.engine.post(ctx, func(now time.Duration) { p.engine.core.PingOK(now) })
	}
	return nil
}

func (p *pinger) close() error {
	if p.conn == nil {
		return nil
	}
	return p.conn.Close()
}
