package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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

// A timedConn gives every read and write frameTimeout, and none longer than until
// end, reading with a buffer.
type timedConn struct {
	net.Conn
	r   *bufio.Reader
	end time.Time // zero: none
}

func newTimedConn(c net.Conn) *timedConn {
	return &timedConn{Conn: c, r: bufio.NewReaderSize(c, seal.MaxFrame)}
}

func (c *timedConn) deadline() time.Time { return earlier(time.Now().Add(frameTimeout), c.end) }

func (c *timedConn) Read(p []byte) (int, error) {
	if c.r.Buffered() == 0 {
		if err := c.SetReadDeadline(c.deadline()); err != nil {
			return 0, err
		}
	}
	return c.r.Read(p)
}

func (c *timedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// A pullState is how far a pull of all that a peer holds has come. A stream
// that broke is gone on with where it was marked last, as long as the peer is
// the same.
type pullState struct {
	highest uint64 // sequence number of datagrams that need no longer come
	total   uint32 // connections that the peer had at the beginning
	records uint64 // that came
	mark    []byte // where to go on, nil at the beginning
	marked  uint64 // records by then
}

// pull delivers what request asks the peer for, and notes in st how far that
// has come.
func (s *Session) pull(ctx context.Context, t pullTarget, request []byte, st *pullState) error {
	conn, stream, err := s.dial(ctx, t)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := stream.Write(request); err != nil {
		return err
	}
	r := bulkReader{s: s, t: t, st: st, merge: deliveries{deliver: s.cfg.Deliver}}
	return r.read(stream)
}

// dial opens a stream to a peer. The caller closes the connection.
func (s *Session) dial(ctx context.Context, t pullTarget) (net.Conn, *seal.Stream, error) {
	dialCtx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	conn, err := s.cfg.Transport.Dial(dialCtx, netip.AddrPortFrom(t.addr.Addr(), t.port))
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	stream, err := seal.Client(newTimedConn(conn), s.keys.Load(), purposeBulk)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, stream, nil
}

// appendPull makes the first frame of a stream that asks for all, or for what
// comes behind mark.
func appendPull(b []byte, version uint8, self conntable.NodeID, name string, mark []byte) []byte {
	b = (&head{version: version, typ: typePull, node: self}).append(b)
	b = append(append(b, byte(len(name))), name...)
	return append(b, mark...)
}

// A bulkReader reads the answer to one request.
type bulkReader struct {
	s       *Session
	t       pullTarget
	st      *pullState
	begun   bool
	came    uint64
	decoder decoder
	merge   deliveries
}

func (r *bulkReader) read(stream *seal.Stream) error {
	for {
		frame, err := stream.Read()
		if errors.Is(err, io.EOF) {
			err = errEnd
		}
		if err != nil {
			return err
		}
		var h head
		c, err := h.parse(frame)
		if err != nil {
			return err
		}
		if h.typ == typeEnd && r.begun {
			if told := c.u64(); c.bad || told != r.came {
				return fmt.Errorf("the peer says it sent %d records, %d came", told, r.came)
			}
			return nil
		}
		if err := r.frame(&h, &c); err != nil {
			return err
		}
	}
}

func (r *bulkReader) frame(h *head, c *cursor) error {
	switch {
	case h.typ == typeBegin && !r.begun:
		r.begun = true
		r.begin(c)
	case h.typ == typeBulk && r.begun:
		if err := r.records(h, c); err != nil {
			return err
		}
	case h.typ == typeMark && r.begun:
		if mark := c.take(conntable.CursorSize); !c.bad {
			r.st.mark, r.st.marked = append(r.st.mark[:0], mark...), r.st.records
		}
	default:
		return errMalformed
	}
	if c.bad {
		return errMalformed
	}
	r.s.notePull(r.t.peer, r.st)
	return nil
}

// begin reads how much there is. Where a stream is gone on with, the beginning
// told what it covers.
func (r *bulkReader) begin(c *cursor) {
	highest, clock, total := c.u64(), c.u64(), c.u32()
	r.s.cfg.Clock.Observe(clock)
	if r.st.mark == nil {
		r.st.highest, r.st.total = highest, total
	}
}

func (r *bulkReader) records(h *head, c *cursor) error {
	clock := c.u64()
	if c.bad || clock > conntable.MaxClock {
		return errMalformed
	}
	r.s.cfg.Clock.Observe(clock)
	m := origin{version: h.version, clock: clock, sender: h.node}
	defer r.merge.flush()
	return r.decoder.records(c.b, &m, func(rec *conntable.Record) {
		r.came++
		r.st.records++
		r.merge.add(rec)
	})
}

// notePull shows how far a pull has come.
func (s *Session) notePull(p *peerState, st *pullState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.pullTotal, p.pullDone = st.total, st.records
}
