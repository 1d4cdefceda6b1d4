package peer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// The ways between nodes differ, and change. Each node tells the others in its
// heartbeats what comes to it from them: whether the group's datagrams do
// (switches that snoop IGMP or MLD without a querier stop passing them on after
// some minutes), and how large they may be. Who is not reached through the
// group is sent to alone as well; records are made as large as all take.
const (
	// groupSilent is how long the group's datagrams of a peer must be missing
	// for us to ask it to send to us alone.
	groupSilent = silentAfter
	// probeEvery is how often a heartbeat is as large as a datagram might be.
	probeEvery = time.Second
	// settleFor is for how long a new peer's word on sizes is not taken: all are
	// probed for by then.
	settleFor = 6 * time.Second
	// sizeFor is for how long, twice at most, the size of a datagram that came
	// is believed to be that of one that can come.
	sizeFor = 10 * time.Second
	// roomFor is for how long datagrams of a size that the system refused to
	// send are not tried for records: until the peers' word is of the time
	// after that. Probes of that size go on, and if they are refused that counts anew.
	roomFor = 3 * sizeFor

	// MaxDatagram is the largest UDP payload that is read.
	MaxDatagram = 9000
	// MinDatagram is what every path takes (RFC 791: 576 bytes of IPv4).
	MinDatagram = 576 - 28
	// minIPv6Datagram is what every link with IPv6 takes (RFC 8200).
	minIPv6Datagram = 1280 - 48
)

// sizes are those that are probed for, besides the largest that our own link
// takes.
func (s *Session) sizes() [3]int { return [...]int{MinDatagram, minIPv6Datagram, s.usual} }

// peerPath is the way from a peer to us, and what the peer says of the way
// back.
type peerPath struct {
	groupAt time.Time // when a datagram of the group's came last
	size    [2]uint16 // the largest that came since sizeAt, and in the time before
	sizeAt  time.Time

	told bool // it says, below
	path      // from us to it
}

func (p *peerPath) note(size int, group bool, now time.Time) {
	if group {
		p.groupAt = now
	}
	if now.Sub(p.sizeAt) > sizeFor {
		p.size[1], p.size[0] = p.size[0], 0
		p.sizeAt = now
	}
	p.size[0] = max(p.size[0], uint16(min(size, MaxDatagram)))
}

// needsAlone reports whether the group's datagrams of p do not come.
func (s *Session) needsAlone(p *peerState, now time.Time) bool {
	return s.cfg.Transport.Group() && now.Sub(p.way.groupAt) > groupSilent
}

// noteArrival notes that a datagram of a peer came.
func (s *Session) noteArrival(node conntable.NodeID, size int, group bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[node]; p != nil {
		p.way.note(size, group, now)
	}
}

// pathsLocked returns what to tell the peers of the ways to us.
func (s *Session) pathsLocked(now time.Time) (out []path) {
	for _, p := range s.peers {
		out = append(out, path{node: p.node, size: max(p.way.size[0], p.way.size[1]), alone: s.needsAlone(p, now)})
	}
	return out
}

// notePathLocked notes what p says of the way from us to it.
func (s *Session) notePathLocked(p *peerState, hb *heartbeat, now time.Time) {
	was := p.way.alone && p.way.told
	p.way.told = false
	for _, w := range hb.paths {
		if w.node == s.self {
			p.way.told, p.way.path = true, w
		}
	}
	if is := p.way.told && p.way.alone; is != was {
		if is {
			s.log.Warn("the group's datagrams do not reach a peer, sending to it alone; is there an IGMP or MLD querier on the LAN?", "peer", p.name, "addr", p.addr)
		} else {
			s.log.Info("the group's datagrams reach a peer again", "peer", p.name)
		}
	}
	s.chooseSizeLocked(now)
}

// chooseSizeLocked makes datagrams of records as large as all peers that are
// heard can get them. What was sent in larger ones cannot be sent again: that
// is left to a pull.
func (s *Session) chooseSizeLocked(now time.Time) {
	size := s.cfg.Datagram
	for _, p := range s.peers {
		switch {
		case !p.up(now):
		case p.version < 2 || !p.way.told || p.way.path.size == 0 || now.Sub(p.since) < settleFor:
			size = min(size, s.usual)
		default:
			size = min(size, s.fitting(int(p.way.path.size)))
		}
	}
	if len(s.peers) == 0 {
		size = s.usual
	}
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	if now.Sub(s.roomAt) < roomFor {
		size = min(size, s.room)
	}
	s.resizeLocked(size)
}

// resizeLocked is called with ringMu held.
func (s *Session) resizeLocked(size int) {
	was := int(s.size.Swap(int64(size)))
	if size < was {
		s.ring.forget()
	}
	if size != was {
		s.log.Info("size of datagrams", "bytes", size)
	}
}

// noteRefused makes datagrams of records smaller than one that the system did
// not take: the link's MTU has become smaller, or a router has told of one that
// is on the way to a peer.
func (s *Session) noteRefused(bytes int, now time.Time) {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	room := s.fitting(bytes - 1)
	if now.Sub(s.roomAt) < roomFor {
		room = min(room, s.room)
	}
	s.room, s.roomAt = room, now
	if int(s.size.Load()) > room {
		s.resizeLocked(room)
	}
}

// fitting is the largest size that is probed for and is not above heard.
func (s *Session) fitting(heard int) int {
	own := s.cfg.Datagram
	if heard >= own {
		return own
	}
	fit := min(own, MinDatagram)
	for _, n := range s.sizes() {
		if n <= heard && n <= own {
			fit = n
		}
	}
	return fit
}

// pad makes a heartbeat as large as a datagram might be, if a probe is due: the
// largest, or if not all get that one size after the other. Only beat calls it.
func (s *Session) pad(message []byte, now time.Time) []byte {
	if now.Sub(s.probeAt) < probeEvery {
		return message
	}
	s.probeAt = now
	s.probes++
	size, sizes := s.cfg.Datagram, s.sizes()
	if at := s.probes % (len(sizes) + 1); at < len(sizes) && int(s.size.Load()) < size {
		size = min(size, sizes[at])
	}
	if n := size - seal.Overhead - len(message); n > 0 {
		message = append(message, make([]byte, n)...)
	}
	return message
}

// broadcast sends to the group, and to those whom the group's datagrams do not
// reach. Whom we do not hear at all may not be able to say so: it gets the
// heartbeats.
func (s *Session) broadcast(datagrams [][]byte, heartbeat bool) {
	s.sentOr(datagrams, s.cfg.Transport.Broadcast(datagrams))
	s.mu.Lock()
	var room [maxPeers]netip.AddrPort
	to := room[:0]
	now := time.Now()
	for _, p := range s.peers {
		if s.cfg.Transport.Group() && (p.up(now) && p.way.told && p.way.alone || heartbeat && !p.up(now)) {
			to = append(to, p.addr)
		}
	}
	s.mu.Unlock()
	for _, addr := range to {
		s.sentOr(datagrams, s.cfg.Transport.SendTo(datagrams, addr))
	}
}

// sentOr notes an error of sending datagrams. ringMu is not held.
func (s *Session) sentOr(datagrams [][]byte, err error) {
	if err == nil {
		return
	}
	s.drops.count(DropSend)
	s.log.Debug("send to peers", "err", err)
	if errors.Is(err, syscall.EMSGSIZE) {
		largest := 0
		for _, d := range datagrams {
			largest = max(largest, len(d))
		}
		s.noteRefused(largest, time.Now())
	}
}

// Warnings tells what is wrong with the peers or the ways to them, for people.
func (s *Session) Warnings() (out []string) {
	// A network in memory has no interface.
	if way, ok := s.cfg.Transport.(interface{ Trouble() string }); ok {
		if trouble := way.Trouble(); trouble != "" {
			out = append(out, trouble)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.clashAt) < clashFor {
		out = append(out, fmt.Sprintf("another node, at %v, has our name %q: neither hears the other; give each its own with sync.node", s.clashAddr, s.cfg.Node))
	}
	for _, p := range s.peers {
		if now.Sub(p.clashAt) < clashFor {
			out = append(out, fmt.Sprintf("two nodes are called %q, at %v and %v: only one is heard; give each its own name with sync.node", p.name, p.addr, p.clashAddr))
		}
		if p.up(now) && s.needsAlone(p, now) {
			out = append(out, fmt.Sprintf("multicast of %s does not come: it sends to us alone; is there an IGMP or MLD querier on the LAN?", p.name))
		}
		if p.up(now) && p.way.told && p.way.alone {
			out = append(out, fmt.Sprintf("our multicast does not reach %s: it is sent to alone", p.name))
		}
	}
	slices.Sort(out)
	return out
}
