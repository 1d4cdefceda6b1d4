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
// and then, do not keep a peer from being served.
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
		for i := range 4 * maxGuestsFrom {
			node := network.Node(100 + i%3)
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
