package peer

import (
	"net/netip"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// lateSlack is by how much a record's version may be older than its timeout,
// for clocks that differ and datagrams on their way.
const lateSlack = 10 * time.Second

// clashFor is for how long two nodes of one name are spoken of.
const clashFor = time.Minute

// receive handles one datagram from the network. Only one goroutine calls it.
func (s *Session) receive(datagram []byte, from netip.AddrPort, group bool) {
	plain, boot, _, err := s.opener.OpenFrom(s.plain[:0], datagram, from.Addr())
	if err != nil {
		s.drops.count(sealDrop(err))
		return
	}
	s.plain = plain[:0]
	if boot == s.sealer.Boot() {
		s.drops.count(DropOwn)
		return
	}
	var h head
	c, err := h.parse(plain)
	switch {
	case err == errVersion:
		s.drops.count(DropVersion)
	case err != nil:
		s.drops.count(DropMalformed)
	case h.node == s.self:
		s.clash(from)
	case h.typ == typeRecords:
		s.noteArrival(h.node, len(datagram), group, time.Now())
		s.onRecords(&h, boot, &c)
	case h.typ == typeHeartbeat:
		s.onHeartbeat(h.node, boot, from, &c)
		s.noteArrival(h.node, len(datagram), group, time.Now())
	case h.typ == typeMissing:
		s.onMissing(from, &c)
	case h.typ == typeServices:
		s.onServices(h.node, boot, &c)
	case h.typ == typeAsk:
		s.onAsk(h.node, from, &c)
	case h.typ == typeReceipt:
		s.onReceipt(&c)
	default:
		s.drops.count(DropType)
	}
}

// clash counts a node that bears our name, which may also be a replay of our
// own earlier life.
func (s *Session) clash(from netip.AddrPort) {
	s.drops.count(DropNameClash)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.clashAt) > clashFor {
		s.log.Warn("another node has our name; give each its own with sync.node", "node", s.cfg.Node, "addr", from)
	}
	s.clashAt, s.clashAddr = now, from
}

func (s *Session) onRecords(h *head, boot seal.Boot, c *cursor) {
	var head recordsHead
	if err := head.parse(h, c); err != nil {
		s.drops.count(DropMalformed)
		return
	}
	if !s.noteRecords(h.node, boot, &head) {
		s.drops.count(DropDuplicate)
		return
	}
	s.cfg.Clock.Observe(head.clock)
	s.now = s.cfg.Clock.Now()
	s.came = 0
	m := origin{version: head.version, clock: head.clock, sender: h.node, age: head.age}
	if err := s.decoder.records(c.b, &m, s.deliverLive); err != nil {
		s.drops.count(DropGroups)
	}
	s.live.flush()
	s.countReceived(h.node, s.came)
}

// deliverOne takes one record of a datagram. It is s.deliverLive, made once.
func (s *Session) deliverOne(r *conntable.Record) {
	if r.Version.Clock >= conntable.LiveClock && s.now > r.Version.Clock+uint64((r.Timeout+lateSlack)/time.Microsecond) {
		s.drops.count(DropLate)
		return
	}
	s.came++
	s.live.add(r)
}

// deliverAtOnce is how many records are delivered at once, at most.
const deliverAtOnce = 256

// deliveries gathers the records of a datagram, since many at a time are merged
// faster than one by one.
type deliveries struct {
	deliver func([]conntable.Record)
	recs    []conntable.Record
}

func (d *deliveries) add(r *conntable.Record) {
	if d.recs == nil {
		d.recs = make([]conntable.Record, 0, deliverAtOnce)
	}
	if d.recs = append(d.recs, *r); len(d.recs) == deliverAtOnce {
		d.flush()
	}
}

func (d *deliveries) flush() {
	if len(d.recs) > 0 {
		d.deliver(d.recs)
		d.recs = d.recs[:0]
	}
}

// noteRecords marks a datagram of records as come, and reports whether it is
// wanted.
func (s *Session) noteRecords(node conntable.NodeID, boot seal.Boot, head *recordsHead) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[node]
	if p == nil || p.boot != boot {
		return true // versions decide; a heartbeat will introduce its sender
	}
	now := time.Now()
	before := p.gaps.next
	wanted, lost := p.gaps.heard(head.sequence)
	if !wanted {
		return false
	}
	if head.sequence < before {
		p.repaired++
		p.wait = missingAgain
		p.noteFilled()
	}
	if lost > 0 {
		p.noteGap(lost, now)
		s.wake()
	}
	return true
}

func (s *Session) countReceived(node conntable.NodeID, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[node]; p != nil {
		p.received += n
		s.caughtUpLocked(p)
		s.receiptLocked(p)
	}
}

func (s *Session) onHeartbeat(node conntable.NodeID, boot seal.Boot, from netip.AddrPort, c *cursor) {
	hb := &s.heartbeat
	name, err := hb.parse(c)
	if err != nil {
		s.drops.count(DropMalformed)
		return
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.introduceLocked(node, boot, from, hb, name, now)
	if p == nil {
		return
	}
	s.cfg.Clock.Observe(hb.clock)
	if !p.up(now) {
		s.log.Info("peer heard", "peer", p.name, "addr", from)
	}
	p.addr, p.port, p.heardAt = from, hb.port, now
	p.synced, p.connections, p.lowest = hb.flags&flagSynced != 0, hb.connections, hb.lowest
	p.holds = p.holds || p.synced
	p.version, p.streams, p.rate = hb.version, hb.streams, hb.rate
	s.chooseVersionLocked(now)
	s.notePathLocked(p, hb, now)
	p.noteGap(p.gaps.told(hb.highest), now)
	if len(p.gaps.spans) > 0 && p.gaps.spans[0].from < p.lowest && !p.pulling {
		p.pullWanted = true
		if p.pull.mark != nil && p.gaps.spans[0].from > p.pull.highest {
			p.lacking = true
		}
	}
	s.toldLocked(p, hb)
	if hb.horizon != 0 {
		p.digests.set(hb.horizon, hb.digest)
		s.compareLocked(p)
	}
	if hb.flags&flagAnswer != 0 {
		s.answer = true
		if p.asks != hb.ask {
			p.asks, p.asksOf = hb.ask, hb.highest
		}
	}
	if s.answer || p.pullWanted || !p.missingAt.IsZero() {
		s.wake()
	}
}

// introduceLocked returns the state of the peer that sent hb, new or in a new
// life if need be, or nil if it is not to be heard.
func (s *Session) introduceLocked(node conntable.NodeID, boot seal.Boot, from netip.AddrPort, hb *heartbeat, name []byte, now time.Time) *peerState {
	p := s.peers[node]
	switch {
	case p == nil:
		if len(s.peers) >= maxPeers {
			s.drops.count(DropPeers)
			return nil
		}
		p = &peerState{node: node, name: string(name)}
		s.peers[node] = p
		p.begin(boot, hb, now)
	case p.name != string(name):
		s.drops.count(DropNameClash)
		return nil
	case p.boot != boot:
		if hb.incarnation <= p.incarnation && now.Sub(p.heardAt) < oldBootFor {
			s.drops.count(DropOldBoot)
			if from != p.addr { // and not a datagram that was under way
				p.clashAt, p.clashAddr = now, from
			}
			return nil
		}
		p.restarts++
		s.restartedLocked(p)
		s.log.Info("peer restarted", "peer", p.name)
		p.begin(boot, hb, now)
	}
	return p
}

// onMissing sends again what a peer asks for.
func (s *Session) onMissing(asker netip.AddrPort, c *cursor) {
	if err := s.missing.parse(c); err != nil {
		s.drops.count(DropMalformed)
		return
	}
	if s.missing.boot != s.sealer.Boot() {
		s.drops.count(DropOldBoot)
		return
	}
	now := time.Now()
	var out [][]byte
	for _, r := range s.missing.ranges {
		from, to := s.keeps(r)
		if from > r.from || to < r.to {
			s.drops.count(DropGone)
		}
		for seq := from; seq <= to; seq++ {
			if !s.mayResend(now) {
				s.drops.count(DropFlood)
				s.resend(out, asker)
				return
			}
			d, ok := s.sealAgain(seq, now)
			if !ok {
				break // it went meanwhile
			}
			out = append(out, d)
			if len(out) == sendBatch {
				s.resend(out, asker)
				out = out[:0]
			}
		}
	}
	s.resend(out, asker)
}

// keeps returns the part of r that can be sent again.
func (s *Session) keeps(r span) (from, to uint64) {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	return max(r.from, s.ring.lowest()), min(r.to, s.ring.highest)
}

func (s *Session) resend(out [][]byte, to netip.AddrPort) {
	if len(out) > 0 {
		s.sentOr(out, s.cfg.Transport.SendTo(out, to))
	}
}

// mayResend bounds what peers can make us send.
func (s *Session) mayResend(now time.Time) bool {
	if now.Sub(s.resentAt) >= resendTick {
		s.resentAt, s.resent = now, 0
	}
	s.resent++
	return s.resent <= resendsPerTick
}

func (s *Session) sealAgain(seq uint64, now time.Time) ([]byte, bool) {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	k, ok := s.ring.get(seq)
	if !ok {
		return nil, false
	}
	setAge(k.message, now.Sub(k.sent))
	d, _ := s.sealer.Seal(nil, k.message)
	return d, true
}
