package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

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
	st, err := seal.Server(conn, s.keys.Load(), purposeBulk)
	if err != nil {
		return err
	}
	return s.serveStream(st)
}

// sendBulk sends what this node holds, from a place of the walk on, or only
// what is in the slices, in a version of the protocol.
func (s *Session) sendBulk(st *seal.Stream, version uint8, from conntable.Cursor, in *conntable.Slices) error {
	highest, _ := s.Sent()
	b := appendHead(nil, typeBegin, s.self)
	b = binary.BigEndian.AppendUint64(b, highest)
	b = binary.BigEndian.AppendUint64(b, s.cfg.Clock.Now())
	b = binary.BigEndian.AppendUint32(b, uint32(s.cfg.Len()))
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
	return st.Write(binary.BigEndian.AppendUint64(appendHead(b[:0], typeEnd, s.self), w.records))
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
func (s *Session) serveStream(st *seal.Stream) error {
	frame, err := st.Read()
	if err != nil {
		return err
	}
	var h head
	c, err := h.parse(frame)
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
