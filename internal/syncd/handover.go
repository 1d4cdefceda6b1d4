package syncd

import (
	"context"
	"fmt"
	"time"

	"saru/conntable"
	"saru/internal/ownership"
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
	// handshakesAmong bounds the table that is read for handshakes: the time that
	// takes grows with the square of its size. handshakesAtOnce bounds how many
	// are told, so that a flood of SYNs here is none for the peers.
	handshakesAmong  = 1 << 15
	handshakesAtOnce = 1 << 12
	handshakesWithin = 5 * time.Second
)

var (
	errLongTable      = fmt.Errorf("the kernel's table has more than %d connections: too many to look for handshakes among them", handshakesAmong)
	errManyHandshakes = fmt.Errorf("more than %d handshakes are under way: the others are not told", handshakesAtOnce)
)

// CatchUp waits until all that the named peer's kernel knew when CatchUp was
// called is in this one's, as far as its sync threads tell it. How far
// these are behind only the peer can see, so a time must do.
func (e *Engine) CatchUp(ctx context.Context, peer string) error {
	if !task.Pause(ctx, captureLag) {
		return ctx.Err()
	}
	if err := e.session.CatchUp(ctx, peer); err != nil {
		return err
	}
	return e.inKernel(ctx)
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

// TellHandshakes tells the peers of the TCP connections that the kernel has half
// open (SYN_RECV), which its sync threads never do, and returns how many were
// told. Whoever gets the buckets they are in then answers a SYN that is repeated
// with the same real server, and a handshake that lasts long does not depend on
// how long the giver lingers. The module tells of them by itself. The error says
// that not all were told, and why.
func (e *Engine) TellHandshakes(ctx context.Context) (told int, err error) {
	if e.kernel.Stats().Source == SourceModule {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakesWithin)
	defer cancel()
	var at conntable.Version
	read := 0
	err = e.kernel.Entries(func() error {
		switch {
		case read > handshakesAmong:
			return errLongTable
		case told >= handshakesAtOnce:
			return errManyHandshakes
		}
		e.clock.Turn()
		at = e.clock.Next() // what is captured from here on is newer
		return ctx.Err()
	}, func(k *Entry) {
		read++
		if k.Protocol == kernelsync.ProtoTCP && k.State == tcpSynRecv && !k.Synced && e.wants(&k.Connection) && e.tellHandshake(k, at) {
			told++
		}
	})
	e.handshakes.Add(uint64(told))
	return told, err
}

// tellHandshake tells the peers of one, unless that is no news, or another
// director's affair: a SYN that was repeated after the bucket had moved was
// scheduled anew there.
func (e *Engine) tellHandshake(k *Entry, at conntable.Version) bool {
	if whose, _ := e.owner.Of(time.Now(), &k.Key); whose == ownership.Elsewhere {
		return false
	}
	var known conntable.Record
	there := e.table.Lookup(k.Key, &known)
	again := there && (known.Dest != k.Dest || !known.Deleted && ended(&known.Connection))
	if there && !known.Deleted && !again {
		return false
	}
	r := conntable.Record{Connection: k.Connection, Version: at, Remaining: k.Remaining}
	r.Timeout = max(r.Timeout, k.Remaining)
	// A kernel that has the key with another real server leaves that alone if
	// the record is inactive, and puts the new connection in its place if not
	// (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn). What the taker may have
	// scheduled itself stays. But where the client has used its port again, the
	// old connection goes: its real server's reset would end the new one.
	r.Flags |= conntable.FlagInactive
	if again {
		r.Flags &^= conntable.FlagInactive
	}
	e.queued(e.table.Apply(&r, e.newsFor()))
	return true
}

// ended reports whether no packet but a SYN can make c live again.
func ended(c *conntable.Connection) bool {
	return c.Protocol == kernelsync.ProtoTCP && (c.State == tcpTimeWait || c.State == tcpClose || c.State == tcpLastAck)
}
