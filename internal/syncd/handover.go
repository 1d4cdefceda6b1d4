package syncd

import (
	"context"
	"fmt"
	"time"

	"saru/conntable"
	"saru/internal/task"
	"saru/syncproto/kernelsync"
)

// What saru asks when it moves a share.

const (
	// captureLag is for how long what the kernel knows may be on its way to
	// the mirror: two of the heartbeats that push records out of its sync
	// threads, and a flush window.
	captureLag = 110 * time.Millisecond
	// captureBeats is how many heartbeats' return shows the same on a machine
	// that is busy: one may have been under way, one pushes.
	captureBeats = 2
	// handshakesAmong bounds the table that is read for handshakes. Reading it
	// takes a time that grows with the square of its size.
	handshakesAmong = 1 << 15
)

// CatchUp waits until all that the named peer's kernel knew when CatchUp was
// called was given to this one's, as far as its sync threads tell it.
func (e *Engine) CatchUp(ctx context.Context, peer string) error {
	if !task.Pause(ctx, captureLag) {
		return ctx.Err()
	}
	if err := e.session.CatchUp(ctx, peer); err != nil {
		return err
	}
	return e.toKernel.flushed(ctx)
}

// CatchUpBack waits until all that the own kernel knew when CatchUpBack was
// called was sent to the peers, and is delivered at the named one.
func (e *Engine) CatchUpBack(ctx context.Context, peer string) error {
	if err := e.capturedAll(ctx); err != nil {
		return err
	}
	if err := e.toPeers.flushed(ctx); err != nil {
		return err
	}
	return e.session.Delivered(ctx, peer)
}

// capturedAll waits until what the kernel knew is in the mirror, as far as it
// tells.
func (e *Engine) capturedAll(ctx context.Context) error {
	before := e.kernel.Stats()
	for {
		if !task.Pause(ctx, captureLag) {
			return ctx.Err()
		}
		now := e.kernel.Stats()
		// A kernel that is not heard at all tells nothing later, either.
		if now.Source != SourceDaemon || now.Degraded != "" || now.Beats-before.Beats >= captureBeats {
			return nil
		}
	}
}

// TellHandshakes tells the peers of the TCP connections that the kernel has
// half open, which its sync threads never do, and returns how many they are.
// Whoever gets the buckets they are in then answers a SYN that is repeated with
// the same real server, and a handshake that lasts long does not depend on how
// long the giver lingers. The module tells of them by itself. The error says
// what is too much: then they are not told.
func (e *Engine) TellHandshakes(ctx context.Context) (told int, err error) {
	if e.kernel.Stats().Source == SourceModule {
		return 0, nil
	}
	if n := e.table.Len(); n > handshakesAmong {
		return 0, fmt.Errorf("the table has %d connections: too many to look for handshakes among them, the limit is %d", n, handshakesAmong)
	}
	var at conntable.Version
	err = e.kernel.Entries(func() error {
		at = e.clock.Next() // what is captured from here on is newer
		return ctx.Err()
	}, func(k *Entry) {
		if k.Protocol == kernelsync.ProtoTCP && k.State == tcpSynRecv && !k.Synced && e.wants(&k.Connection) && e.tellHandshake(k, at) {
			told++
		}
	})
	return told, err
}

// tellHandshake tells the peers of one, unless that is no news.
func (e *Engine) tellHandshake(k *Entry, at conntable.Version) bool {
	r := conntable.Record{Connection: k.Connection, Version: at, Remaining: k.Remaining}
	r.Timeout = max(r.Timeout, k.Remaining)
	var known conntable.Record
	if e.table.Lookup(k.Key, &known) && !known.Deleted {
		if !ended(&known.Connection) {
			return false
		}
		// The client has used its port again. A kernel that has the old
		// connection puts the new one in its place only if that counts as
		// active (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn): else it
		// goes on sending the client's packets to the old real server, whose
		// reset ends the new connection.
		r.Flags &^= conntable.FlagInactive
	}
	e.queued(e.table.Apply(&r, e.newsFor()))
	return true
}

// ended reports whether no packet but a SYN can make c live again.
func ended(c *conntable.Connection) bool {
	const timeWait, lastAck = 5, 8 // IP_VS_TCP_S_...
	return c.Protocol == kernelsync.ProtoTCP && (c.State == timeWait || c.State == tcpClose || c.State == lastAck)
}
