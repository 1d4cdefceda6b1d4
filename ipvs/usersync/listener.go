package usersync

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Handler takes what a Listener hears, on the goroutine of its Run.
type Handler struct {
	// Event takes each event. The record and what it points to are valid
	// during the call only.
	Event func(*Record)
	// Lost is called when events were lost: the table must be dumped. why
	// is for people.
	Lost func(why error)
}

// A Listener hears the events of the network namespace in which it was
// opened. It is a task; no method of it is safe for concurrent use but Close
// after Run.
type Listener struct {
	family  family
	sock    *socket
	handler Handler
	dec     decoder
	streams map[uint32]stream // by CPU
}

// stream is what is known of one CPU's messages.
type stream struct {
	seq, dropped uint64
}

// ReceiveBuffer is how much the kernel may queue for a Listener, in bytes:
// several tens of thousands of events.
const ReceiveBuffer = 16 << 20

// Listen subscribes to the events: from its return on they are queued for Run.
// The error is ErrNotLoaded or ErrVersion as Dial's.
func Listen(h Handler) (*Listener, error) {
	f, err := resolve()
	if err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	err = s.control(func(fd int) error {
		// Beyond net.core.rmem_max, which root may; it is less otherwise.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, ReceiveBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, ReceiveBuffer)
		}
		// First the news of the family's end, so that it is not missed.
		for _, group := range []uint32{f.notifications, f.events} {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group)); err != nil {
				return named("subscribe", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &Listener{family: f, sock: s, handler: h, streams: map[uint32]stream{}}, nil
}

// Close ends the subscription.
func (l *Listener) Close() error { return l.sock.close() }

// Run hands on events until ctx ends, which is no error. It returns
// ErrNotLoaded when the module is unloaded.
func (l *Listener) Run(ctx context.Context) error {
	stop, err := l.sock.readUntil(ctx)
	if err != nil {
		return err
	}
	defer stop()
	for {
		b, err := l.sock.receive()
		switch {
		case err == nil:
			if err := l.messages(b); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOBUFS):
			l.handler.Lost(fmt.Errorf("the socket's queue was full: %w", err))
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return nil
		default:
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (l *Listener) messages(b []byte) error {
	for len(b) > 0 {
		h, body, rest, err := nextMessage(b)
		if err != nil {
			l.handler.Lost(err)
			return nil
		}
		b = rest
		if len(body) < genlHeader {
			continue
		}
		cmd, attrs := body[0], body[genlHeader:]
		switch {
		case h.kind == ctrlID && cmd == ctrlDelFamily && l.ours(attrs):
			return fmt.Errorf("listen for events: %w", ErrNotLoaded)
		case h.kind == l.family.id && cmd == cmdEvents:
			l.batch(attrs)
		}
	}
	return nil
}

// ours says whether a message of the controller is about our family.
func (l *Listener) ours(attrs []byte) bool {
	id := attrOf(attrs, ctrlAttrFamilyID)
	return len(id) == 2 && native.Uint16(id) == l.family.id
}

func (l *Listener) batch(attrs []byte) {
	b, err := l.dec.events(attrs, l.handler.Event)
	if err != nil {
		l.handler.Lost(err)
		return
	}
	last, known := l.streams[b.CPU]
	switch {
	case !known && b.Dropped != 0:
		// Perhaps before our time: better one dump too many.
		l.handler.Lost(fmt.Errorf("CPU %d: the module has dropped %d events", b.CPU, b.Dropped))
	case known && b.Seq != last.seq+1:
		l.handler.Lost(fmt.Errorf("CPU %d: message %d came after %d", b.CPU, b.Seq, last.seq))
	case known && b.Dropped != last.dropped:
		l.handler.Lost(fmt.Errorf("CPU %d: the module dropped %d events", b.CPU, b.Dropped-last.dropped))
	}
	l.streams[b.CPU] = stream{b.Seq, b.Dropped}
}
