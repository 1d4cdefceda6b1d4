package peer

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"saru/internal/task"
	"saru/syncproto/peer/peertest"
)

// Strangers that connect and have no key, whether they say nothing or a byte now
// and then, do not keep a peer from being served, even if there are more of them
// than are let in.
func TestStrangersHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		kr := keys(t, keyA)
		a, _ := session(t, kr, "d1", network.Node(1))
		runAll(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		var strangers sync.WaitGroup
		defer strangers.Wait()
		defer cancel()
		const addresses = maxGuests/maxGuestsFrom + 2
		for i := range addresses * maxGuestsFrom {
			node := network.Node(100 + i%addresses)
			strangers.Go(func() { bother(ctx, node, i%2 == 0) })
		}
		time.Sleep(time.Second)
		b, _ := session(t, kr, "d2", network.Node(2))
		runAll(t, b)
		time.Sleep(DefaultStartPeriod + time.Second)
		if p := b.Peers(); len(p) != 1 || p[0].State == "pulling" || p[0].Error != "" {
			t.Errorf("what b knows of its peers: %+v", p)
		}
		if n := a.streams.Load(); n != 0 {
			t.Errorf("a says that it serves %d streams", n)
		}
	})
}

// Nobody takes what is left for others: strangers not the peers', and one address
// no more than its part.
func TestGuestsAreBounded(t *testing.T) {
	g := guests{from: map[netip.Addr]int{}}
	let := func(n int, c guest, want int) {
		t.Helper()
		in := 0
		for range n {
			if g.enter(c) {
				in++
			}
		}
		if in != want {
			t.Errorf("%d of %d let in of %+v, want %d", in, n, c, want)
		}
	}
	stranger := func(i byte) guest { return guest{netip.AddrFrom4([4]byte{10, 0, 1, i}), true} }
	peer := guest{from: netip.MustParseAddr("10.0.0.2")}
	for i := range byte(maxGuests / maxGuestsFrom) {
		let(maxGuestsFrom+1, stranger(i), maxGuestsFrom)
	}
	let(1, stranger(99), 0)
	let(maxGuestsFrom+1, peer, maxGuestsFrom)
	g.leave(peer)
	let(1, stranger(99), 0)
	let(2, peer, 1)
	g.leave(stranger(0))
	let(2, stranger(99), 1)
}

// bother connects again and again until ctx ends.
func bother(ctx context.Context, from *peertest.Node, says bool) {
	for task.Pause(ctx, 10*time.Millisecond) {
		conn, err := from.Dial(ctx, netip.MustParseAddrPort("10.0.0.1:8849"))
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		go func() {
			for says {
				if _, err := conn.Write([]byte{1}); err != nil || !task.Pause(ctx, frameTimeout*9/10) {
					return
				}
			}
		}()
		io.Copy(io.Discard, conn)
		stop()
		conn.Close()
	}
}
