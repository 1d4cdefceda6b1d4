package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/internal/task"
)

// acceptPause is how long to leave a system that cannot accept alone.
const acceptPause = 100 * time.Millisecond

// Whoever connects has no key until it has shown that it has. Such guests are
// bounded by number, and by how long each may take in all. Strangers take nothing
// away from the peers: who comes from the address of a peer that is up is bounded
// for that address alone.
const (
	maxGuests     = 64 // strangers
	maxGuestsFrom = 8  // one address
	greetWithin   = 5 * time.Second
)

// A guest has connected and not shown yet that it has a key.
type guest struct {
	from     netip.Addr
	stranger bool // no peer that was up when it came has that address
}

// guests are those who are there, by address.
type guests struct {
	mu        sync.Mutex
	strangers int
	from      map[netip.Addr]int
}

// enter reports whether one more may come.
func (g *guests) enter(c guest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.stranger && g.strangers >= maxGuests || g.from[c.from] >= maxGuestsFrom {
		return false
	}
	if c.stranger {
		g.strangers++
	}
	g.from[c.from]++
	return true
}

func (g *guests) leave(c guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.stranger {
		g.strangers--
	}
	if g.from[c.from]--; g.from[c.from] == 0 {
		delete(g.from, c.from)
	}
}

// guest returns who is at a connection's other end.
func (s *Session) guest(conn net.Conn) guest {
	at, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	c := guest{from: at.Addr().Unmap(), stranger: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, p := range s.peers {
		if p.addr.Addr() == c.from && p.up(now) {
			c.stranger = false
		}
	}
	return c
}

// serve answers pulls.
func (s *Session) serve(ctx context.Context) error {
	ln := s.cfg.Transport.Listener()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var streams sync.WaitGroup
	defer streams.Wait()
	door := server{s: s, guests: guests{from: map[netip.Addr]int{}}, slots: make(chan struct{}, maxPulls)}
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept peers: %w", err)
		}
		if err != nil { // out of descriptors, or the peer gave up
			s.drops.count(DropStream)
			if !task.Pause(ctx, acceptPause) {
				return nil
			}
			continue
		}
		from := s.guest(conn)
		if !door.guests.enter(from) {
			s.drops.count(DropStream)
			conn.Close()
			continue
		}
		streams.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			if err := door.serve(conn, from); err != nil && ctx.Err() == nil {
				s.drops.count(DropStream)
				s.log.Debug("serve pull", "addr", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

// A server serves the streams of one Session.
type server struct {
	s      *Session
	guests guests
	slots  chan struct{} // has one for each stream that is served
}

var errBusy = errors.New("as many streams as there may be are served already")

// serve serves a guest that turns out to be a peer, if there is room.
func (v *server) serve(conn net.Conn, from guest) error {
	st, first, err := v.s.greet(conn)
	v.guests.leave(from)
	if err != nil {
		return err
	}
	select {
	case v.slots <- struct{}{}:
	default:
		return errBusy // the puller comes again
	}
	v.s.streams.Add(1)
	defer func() { v.s.streams.Add(-1); <-v.slots }()
	return v.s.serveStream(st, first)
}

// greet opens a stream up to its first frame, which only a peer can have sealed.
func (s *Session) greet(conn net.Conn) (st *seal.Stream, first []byte, err error) {
	timed := newTimedConn(conn)
	timed.end = time.Now().Add(greetWithin)
	if st, err = seal.Server(timed, s.keys.Load(), purposeBulk); err != nil {
		return nil, nil, err
	}
	first, err = st.Read()
	timed.end = time.Time{}
	return st, first, err
}

// sendBulk sends what this node holds, from a place of the walk on, or only
// what is in the slices, in a version of the protocol.
func (s *Session) sendBulk(st *seal.Stream, version uint8, from conntable.Cursor, in *conntable.Slices) error {
	highest, _ := s.Sent()
	b := appendBegin(nil, s.self, highest, s.cfg.Clock.Now(), uint32(s.cfg.Len()))
	if err := st.Write(b); err != nil {
		return err
	}
	w := bulkWriter{s: s, st: st, version: version}
	recs := make([]conntable.Record, bulkChunk)
	for {
		n := s.cfg.Walk(&from, in, recs)
		if n == 0 {
			break
		}
		if err := w.write(recs[:n]); err != nil {
			return err
		}
		if in == nil && version > 1 {
			if err := st.Write(from.AppendTo(appendHead(b[:0], typeMark, s.self))); err != nil {
				return err
			}
		}
	}
	return st.Write(appendEnd(b[:0], s.self, w.records))
}

func appendBegin(b []byte, self conntable.NodeID, highest, clock uint64, connections uint32) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, typeBegin, self), highest)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, clock), connections)
}

func appendEnd(b []byte, self conntable.NodeID, records uint64) []byte {
	return binary.BigEndian.AppendUint64(appendHead(b, typeEnd, self), records)
}

// A bulkWriter sends records in frames, some at a time in sorted order.
type bulkWriter struct {
	s       *Session
	st      *seal.Stream
	version uint8
	batch   batch
	buf     []byte
	records uint64
}

func (w *bulkWriter) write(recs []conntable.Record) error {
	clock := w.batch.load(recs, w.version, w.s.self, &w.s.drops)
	for {
		b := (&head{version: w.version, typ: typeBulk, node: w.s.self}).append(w.buf[:0])
		b = binary.BigEndian.AppendUint64(b, clock)
		var n int
		w.buf, n = w.batch.next(b, bulkFrame)
		if n == 0 {
			return nil
		}
		w.records += uint64(n)
		if err := w.st.Write(w.buf); err != nil {
			return err
		}
	}
}

// serveStream answers the first frame of a puller's stream.
func (s *Session) serveStream(st *seal.Stream, first []byte) error {
	var h head
	c, err := h.parse(first)
	if err != nil || h.typ != typePull && h.typ != typeRepair && h.typ != typeGetServices {
		return errors.Join(errMalformed, err)
	}
	name := parseName(&c)
	if c.bad {
		return errMalformed
	}
	if h.typ == typeGetServices {
		return s.sendServices(st)
	}
	if h.typ == typePull {
		at, ok := conntable.ParseCursor(c.b)
		if !ok {
			at = s.cfg.Ranked()
		}
		s.log.Debug("pulled from", "peer", string(name), "goes_on", ok)
		return s.sendBulk(st, h.version, at, nil)
	}
	diff, err := s.parseRepair(&c)
	if err != nil {
		return fmt.Errorf("repair for %s: %w", name, err)
	}
	s.log.Debug("repairing", "peer", string(name), "slices", diff.Len())
	return s.sendBulk(st, h.version, conntable.Cursor{}, diff)
}
