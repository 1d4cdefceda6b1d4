// Package peertest is a network in memory for tests of the peer protocol: it
// loses, delays and cuts as it is told, and works in the virtual time of
// testing/synctest.
package peertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Port is the port of every Node.
const Port = 8849

// queueSize is how many datagrams wait for a reader; more are lost.
const queueSize = 1 << 14

// A Network connects Nodes. Its fields may be changed by Set while it works.
type Network struct {
	mu    sync.Mutex
	rng   *rand.Rand
	nodes map[netip.Addr]*Node
	addrs []netip.Addr // of nodes, ascending
	loss  float64
	delay time.Duration
	cut   map[[2]netip.Addr]bool
	lost  int

	pruned map[netip.Addr]bool
	mtu    int // of UDP payloads, 0: none
	refuse int // larger payloads are refused to who sends them, 0: none

	streamDelay time.Duration
	streamBreak int
	noStreams   bool
}

// New returns a Network without loss whose randomness comes from seed.
func New(seed uint64) *Network {
	return &Network{rng: rand.New(rand.NewPCG(seed, seed)), nodes: map[netip.Addr]*Node{}, cut: map[[2]netip.Addr]bool{}, pruned: map[netip.Addr]bool{}, delay: 100 * time.Microsecond}
}

// SetLoss makes the network lose that part of all datagrams, 0 to 1.
func (n *Network) SetLoss(part float64) { n.mu.Lock(); n.loss = part; n.mu.Unlock() }

// SetCut cuts both ways between two nodes, for datagrams and new streams, or
// mends them.
func (n *Network) SetCut(a, b *Node, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]netip.Addr{a.addr, b.addr}] = cut
	n.cut[[2]netip.Addr{b.addr, a.addr}] = cut
}

// SetStreamDelay makes each piece of a stream that is written take so long.
func (n *Network) SetStreamDelay(d time.Duration) { n.mu.Lock(); n.streamDelay = d; n.mu.Unlock() }

// SetNoStreams refuses all that Dial, as a firewall does that lets only
// datagrams through.
func (n *Network) SetNoStreams(refuse bool) { n.mu.Lock(); n.noStreams = refuse; n.mu.Unlock() }

// BreakStream breaks the next stream that has carried so many bytes to who
// dialled.
func (n *Network) BreakStream(after int) { n.mu.Lock(); n.streamBreak = after; n.mu.Unlock() }

// Broken reports whether the stream that BreakStream was told of has broken.
func (n *Network) Broken() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.streamBreak == 0 }

// SetPruned makes the group's datagrams reach a node no more, as a switch does
// that snoops IGMP without a querier, or again.
func (n *Network) SetPruned(a *Node, pruned bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pruned[a.addr] = pruned
}

// SetMTU makes the network lose larger datagrams, in bytes of UDP payload.
func (n *Network) SetMTU(bytes int) { n.mu.Lock(); n.mtu = bytes; n.mu.Unlock() }

// RefuseAbove makes the nodes refuse to send larger datagrams, in bytes of UDP
// payload, as a system does that knows an MTU; 0 ends that.
func (n *Network) RefuseAbove(bytes int) { n.mu.Lock(); n.refuse = bytes; n.mu.Unlock() }

// Lost is how many datagrams were lost so far.
func (n *Network) Lost() int { n.mu.Lock(); defer n.mu.Unlock(); return n.lost }

// Node adds the node number i, 1 to 254, in place of an earlier one.
func (n *Network) Node(i int) *Node {
	nd := &Node{
		net: n, addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}),
		in: make(chan packet, queueSize), accept: make(chan net.Conn), closed: make(chan struct{}),
	}
	n.mu.Lock()
	n.nodes[nd.addr] = nd
	n.addrs = slices.SortedFunc(maps.Keys(n.nodes), netip.Addr.Compare)
	n.mu.Unlock()
	return nd
}

// Get returns the node number i.
func (n *Network) Get(i int) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})]
}

// Inject makes a datagram that nobody sent come to the node number i.
func (n *Network) Inject(i int, datagram []byte, from netip.AddrPort) {
	n.Get(i).in <- packet{slices.Clone(datagram), from, true}
}

type packet struct {
	b     []byte
	from  netip.AddrPort
	group bool
}

// A Node is one node's peer.Transport.
type Node struct {
	net    *Network
	addr   netip.Addr
	in     chan packet
	onWire []packet // in the order in which they were sent
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (nd *Node) send(datagrams [][]byte, group bool, pick func(netip.Addr) bool) (refused error) {
	n := nd.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range datagrams {
		if n.refuse > 0 && len(d) > n.refuse {
			refused = syscall.EMSGSIZE
			continue
		}
		for _, addr := range n.addrs { // in their order: what is lost is the seed's choice
			to := n.nodes[addr]
			if to == nd || !pick(addr) {
				continue
			}
			if n.cut[[2]netip.Addr{nd.addr, addr}] || n.rng.Float64() < n.loss || group && n.pruned[addr] || n.mtu > 0 && len(d) > n.mtu {
				n.lost++
				continue
			}
			to.onWire = append(to.onWire, packet{slices.Clone(d), netip.AddrPortFrom(nd.addr, Port), group})
			time.AfterFunc(n.delay, to.arrive)
		}
	}
	return refused
}

// arrive lets the oldest datagram under way come in. Timers of one instant go
// off in any order; a wire keeps what it carries in order.
func (nd *Node) arrive() {
	nd.net.mu.Lock()
	defer nd.net.mu.Unlock()
	p := nd.onWire[0]
	nd.onWire = nd.onWire[1:]
	select {
	case nd.in <- p:
	default:
	}
}

// Broadcast sends to all other nodes.
func (nd *Node) Broadcast(datagrams [][]byte) error {
	return nd.send(datagrams, true, func(netip.Addr) bool { return true })
}

// Group implements peer.Transport.
func (nd *Node) Group() bool { return true }

// SendTo sends to one node.
func (nd *Node) SendTo(datagrams [][]byte, to netip.AddrPort) error {
	return nd.send(datagrams, false, func(a netip.Addr) bool { return a == to.Addr() })
}

// Receive delivers what is sent to this node.
func (nd *Node) Receive(ctx context.Context, deliver func([]byte, netip.AddrPort, bool)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-nd.in:
			deliver(p.b, p.from, p.group)
		}
	}
}

var errRefused = errors.New("connection refused")

// Dial connects to a node that accepts.
func (nd *Node) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	nd.net.mu.Lock()
	peer := nd.net.nodes[to.Addr()]
	refused := nd.net.noStreams || nd.net.cut[[2]netip.Addr{nd.addr, to.Addr()}]
	nd.net.mu.Unlock()
	if peer == nil || refused {
		return nil, fmt.Errorf("%v: %w", to, errRefused)
	}
	ours, theirs := net.Pipe()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-peer.closed:
		return nil, fmt.Errorf("%v: %w", to, errRefused)
	case peer.accept <- &stream{Conn: theirs, net: nd.net, from: nd.addr}:
		return ours, nil
	}
}

// A stream is the accepted end of one.
type stream struct {
	net.Conn
	net  *Network
	from netip.Addr
	sent int // bytes
}

// RemoteAddr is of the node that dialled.
func (s *stream) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.from, Port))
}

func (s *stream) Write(b []byte) (int, error) {
	s.net.mu.Lock()
	delay := s.net.streamDelay
	s.sent += len(b)
	breaks := s.net.streamBreak > 0 && s.sent >= s.net.streamBreak
	if breaks {
		s.net.streamBreak = 0
	}
	s.net.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	if breaks {
		s.Close()
		return 0, net.ErrClosed
	}
	return s.Conn.Write(b)
}

// Listener accepts what is dialled to this node.
func (nd *Node) Listener() net.Listener { return nd }

// Port is Port.
func (nd *Node) Port() uint16 { return Port }

// Headers are those of IPv4 and UDP.
func (nd *Node) Headers() int { return 20 + 8 }

// Accept implements net.Listener.
func (nd *Node) Accept() (net.Conn, error) {
	select {
	case <-nd.closed:
		return nil, net.ErrClosed
	case c := <-nd.accept:
		return c, nil
	}
}

// Close implements net.Listener.
func (nd *Node) Close() error { nd.once.Do(func() { close(nd.closed) }); return nil }

// Addr implements net.Listener.
func (nd *Node) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(nd.addr, Port)) }
