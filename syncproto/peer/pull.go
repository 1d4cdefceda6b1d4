package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

type pullTarget struct {
	peer *peerState // only compared and kept; guarded by Session.mu
	boot seal.Boot
	name string
	addr netip.AddrPort
	port uint16

	version uint8 // in which to ask, and be answered
}

func (p *peerState) target() pullTarget {
	return pullTarget{p, p.boot, p.name, p.addr, p.port, min(p.version, protocolVersion)}
}

// bulkFrame is how large a frame of bulk records is filled, in bytes.
const bulkFrame = 32 << 10

var errEnd = errors.New("the peer ended the stream too early")

// A timedConn gives every read and write frameTimeout, reading with a buffer.
type timedConn struct {
	net.Conn
	r *bufio.Reader
}

func newTimedConn(c net.Conn) *timedConn { return &timedConn{c, bufio.NewReaderSize(c, seal.MaxFrame)} }

func (c *timedConn) Read(p []byte) (int, error) {
	if c.r.Buffered() == 0 {
		if err := c.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
			return 0, err
		}
	}
	return c.r.Read(p)
}

func (c *timedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(frameTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// pull delivers what request asks the peer for. It returns the highest
// sequence number of datagrams that need no longer come, and the number of
// records, also if it fails halfway.
func (s *Session) pull(ctx context.Context, t pullTarget, request []byte) (highest, records uint64, err error) {
	dialCtx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	conn, err := s.cfg.Transport.Dial(dialCtx, netip.AddrPortFrom(t.addr.Addr(), t.port))
	if err != nil {
		return 0, 0, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	st, err := seal.Client(newTimedConn(conn), s.cfg.Keys, purposeBulk)
	if err != nil {
		return 0, 0, err
	}
	if err := st.Write(request); err != nil {
		return 0, 0, err
	}
	return s.readBulk(st)
}

func appendPull(b []byte, version uint8, self conntable.NodeID, name string) []byte {
	b = (&head{version: version, typ: typePull, node: self}).append(b)
	return append(append(b, byte(len(name))), name...)
}

func (s *Session) readBulk(st *seal.Stream) (highest, records uint64, err error) {
	begun := false
	var d decoder
	for {
		frame, err := st.Read()
		if errors.Is(err, io.EOF) {
			err = errEnd
		}
		if err != nil {
			return 0, records, err
		}
		var h head
		c, err := h.parse(frame)
		switch {
		case err != nil:
			return 0, records, err
		case h.typ == typeBegin && !begun:
			begun = true
			highest = c.u64()
			s.cfg.Clock.Observe(c.u64())
		case h.typ == typeBulk && begun:
			n, err := s.bulkRecords(&d, &c, &h)
			records += n
			if err != nil {
				return 0, records, err
			}
		case h.typ == typeEnd && begun:
			if told := c.u64(); c.bad || told != records {
				return 0, records, fmt.Errorf("the peer says it sent %d records, %d came", told, records)
			}
			return highest, records, nil
		default:
			return 0, records, errMalformed
		}
		if c.bad {
			return 0, records, errMalformed
		}
	}
}

func (s *Session) bulkRecords(d *decoder, c *cursor, h *head) (n uint64, err error) {
	clock := c.u64()
	if c.bad || clock > conntable.MaxClock {
		return 0, errMalformed
	}
	s.cfg.Clock.Observe(clock)
	m := origin{version: h.version, clock: clock, sender: h.node}
	err = d.records(c.b, &m, func(r *conntable.Record) {
		n++
		s.cfg.Deliver(r)
	})
	return n, err
}

// acceptPause is how long to leave a system that cannot accept alone.
const acceptPause = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// serve answers pulls.
func (s *Session) serve(ctx context.Context) error {
	ln := s.cfg.Transport.Listener()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var streams sync.WaitGroup
	defer streams.Wait()
	slots := make(chan struct{}, maxPulls)
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
			if !pause(ctx, acceptPause) {
				return nil
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			s.drops.count(DropStream)
			conn.Close() // the puller comes again
			continue
		}
		streams.Go(func() {
			s.streams.Add(1)
			defer func() { s.streams.Add(-1); <-slots }()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			if err := s.servePull(newTimedConn(conn)); err != nil && ctx.Err() == nil {
				s.drops.count(DropStream)
				s.log.Debug("serve pull", "addr", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

func (s *Session) servePull(conn *timedConn) error {
	st, err := seal.Server(conn, s.cfg.Keys, purposeBulk)
	if err != nil {
		return err
	}
	return s.serveStream(st)
}

// sendBulk sends all that this node holds, or only what is in the slices, in a
// version of the protocol.
func (s *Session) sendBulk(st *seal.Stream, version uint8, in *conntable.Slices) error {
	highest, _ := s.Sent()
	b := appendHead(nil, typeBegin, s.self)
	b = binary.BigEndian.AppendUint64(b, highest)
	b = binary.BigEndian.AppendUint64(b, s.cfg.Clock.Now())
	b = binary.BigEndian.AppendUint32(b, uint32(s.cfg.Len()))
	if err := st.Write(b); err != nil {
		return err
	}
	w := bulkWriter{s: s, st: st, version: version, recs: make([]conntable.Record, 0, bulkChunk)}
	s.cfg.Each(func(r *conntable.Record) bool {
		if in != nil && !in.Has(conntable.SliceOf(&r.Key)) {
			return true
		}
		w.recs = append(w.recs, *r)
		return len(w.recs) < bulkChunk || w.flush()
	})
	if !w.flush() {
		return w.err
	}
	return st.Write(binary.BigEndian.AppendUint64(appendHead(nil, typeEnd, s.self), w.records))
}

// A bulkWriter sends records in frames, some at a time in sorted order.
type bulkWriter struct {
	s       *Session
	st      *seal.Stream
	version uint8
	batch   batch
	recs    []conntable.Record
	buf     []byte
	records uint64
	err     error
}

// flush sends what is there, and reports whether that went well.
func (w *bulkWriter) flush() bool {
	clock := w.batch.load(w.recs, w.version, w.s.self, &w.s.drops)
	w.recs = w.recs[:0]
	for w.err == nil {
		b := (&head{version: w.version, typ: typeBulk, node: w.s.self}).append(w.buf[:0])
		b = binary.BigEndian.AppendUint64(b, clock)
		var n int
		w.buf, n = w.batch.next(b, bulkFrame)
		if n == 0 {
			break
		}
		w.records += uint64(n)
		w.err = w.st.Write(w.buf)
	}
	return w.err == nil
}
