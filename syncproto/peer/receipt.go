package peer

import (
	"encoding/binary"
	"net/netip"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// A sender may ask for a receipt: that all datagrams of records up to a
// sequence number are not only delivered but done with, in the peer's kernel.
//
//	ask      head (type 5) | boot 8 of the sender | sequence u64
//	receipt  head (type 6) | boot 8 of who asked  | sequence u64
//
// The ask goes to all, after the datagrams; a receipt to who asked, each peer
// its own. Neither is repeated when it is lost: who asks waits for a bounded
// time anyway. A receipt for a sequence number is one for all before it.

// A Receipt is what a peer asked for, and what it gets.
type Receipt struct {
	to       netip.AddrPort
	boot     seal.Boot
	sequence uint64
}

func appendReceipt(b []byte, typ uint8, node conntable.NodeID, boot seal.Boot, sequence uint64) []byte {
	b = append(appendHead(b, typ, node), boot[:]...)
	return binary.BigEndian.AppendUint64(b, sequence)
}

func parseReceipt(c *cursor) (boot seal.Boot, sequence uint64, err error) {
	copy(boot[:], c.take(8))
	sequence = c.u64()
	if c.bad || sequence == 0 || sequence > conntable.MaxClock {
		return boot, 0, errMalformed
	}
	return boot, sequence, nil
}

// Ask asks all peers for receipts of what was sent until now, and returns the
// sequence number that their receipts will reach; 0 if nothing was sent yet.
func (s *Session) Ask() uint64 {
	s.ringMu.Lock()
	highest := s.ring.highest
	s.ringMu.Unlock()
	if highest == 0 {
		return 0
	}
	d, _ := s.sealer.Seal(nil, appendReceipt(nil, typeAsk, s.self, s.sealer.Boot(), highest))
	s.broadcast([][]byte{d}, false)
	return highest
}

// Asked has the receipts that peers wait for: their records are delivered, and
// Give is due when they are done with.
func (s *Session) Asked() <-chan Receipt { return s.asks }

// Give sends a receipt.
func (s *Session) Give(r Receipt) {
	d, _ := s.sealer.Seal(nil, appendReceipt(nil, typeReceipt, s.self, r.boot, r.sequence))
	s.resend([][]byte{d}, r.to)
}

func (s *Session) onAsk(node conntable.NodeID, from netip.AddrPort, c *cursor) {
	boot, sequence, err := parseReceipt(c)
	if err != nil {
		s.drops.count(DropMalformed)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[node]
	if p == nil || p.boot != boot {
		return // not introduced yet: what it sent before is not known
	}
	p.receipt = Receipt{from, boot, max(sequence, p.receiptSequence())}
	s.receiptLocked(p)
}

func (p *peerState) receiptSequence() uint64 {
	if p.receipt.boot == p.boot {
		return p.receipt.sequence
	}
	return 0
}

// receiptLocked passes on that p waits for a receipt of what is delivered. What
// a pull is to bring is not delivered before that has ended, though nobody asks
// for the datagrams any more.
func (s *Session) receiptLocked(p *peerState) {
	if p.receipt.sequence == 0 || p.receipt.boot != p.boot || p.pulling || p.pullWanted || !p.gaps.complete(p.receipt.sequence) {
		return
	}
	select {
	case s.asks <- p.receipt:
	default: // its sender goes on without
	}
	p.receipt = Receipt{}
}

func (s *Session) onReceipt(c *cursor) {
	boot, sequence, err := parseReceipt(c)
	switch {
	case err != nil:
		s.drops.count(DropMalformed)
	case boot != s.sealer.Boot():
		s.drops.count(DropOldBoot)
	case s.cfg.Received != nil:
		s.cfg.Received(sequence)
	}
}

// Hearing reports whether any peer is up.
func (s *Session) Hearing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, p := range s.peers {
		if p.up(now) {
			return true
		}
	}
	return false
}
