package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"saru/test/lab"
)

const (
	talkPort  = 8020
	lineEvery = time.Second
	silence   = 60 * time.Second // that a flow bears
)

// Talks are long TCP connections on which a line goes there and back every
// second. One is lost if it is reset, or silent for a minute.
type talks struct {
	*site
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	lines atomic.Int64

	mu   sync.Mutex
	open int
	lost []string
}

// serveEcho has each real server send back what comes to a port of the virtual
// address.
func (s *site) serveEcho(port uint16) {
	s.t.Helper()
	for _, r := range s.lab.RealServers {
		var ln net.Listener
		if err := r.Do(func() (err error) {
			ln, err = net.Listen("tcp4", netip.AddrPortFrom(s.lab.Topology.VIP, port).String())
			return err
		}); err != nil {
			s.t.Fatal(err)
		}
		s.accept(ln, func(c net.Conn) {
			_, _ = io.Copy(c, c) // how the client ends it is its own business
		})
	}
}

func (s *site) talks() *talks {
	k := &talks{site: s}
	k.ctx, k.stop = context.WithCancel(s.t.Context())
	s.t.Cleanup(func() {
		k.stop()
		k.wg.Wait()
	})
	return k
}

// begin opens n flows from a client.
func (k *talks) begin(from *lab.Node, n int) {
	k.t.Helper()
	for range n {
		var c net.Conn
		if err := from.Do(func() (err error) {
			c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(k.lab.Topology.VIP, talkPort).String(), silence)
			return err
		}); err != nil {
			k.t.Fatalf("%s: %v", from.Name, err)
		}
		k.mu.Lock()
		k.open++
		k.mu.Unlock()
		k.wg.Go(func() {
			defer c.Close()
			end := context.AfterFunc(k.ctx, func() { c.Close() })
			defer end()
			if err := k.talk(c); err != nil && k.ctx.Err() == nil {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.lost = append(k.lost, fmt.Sprintf("%v of %s: %v", c.LocalAddr(), from.Name, err))
			}
		})
	}
}

func (k *talks) talk(c net.Conn) error {
	tick := time.NewTicker(lineEvery)
	defer tick.Stop()
	in := bufio.NewReader(c)
	for n := 0; ; n++ {
		line := fmt.Sprintf("line %d\n", n)
		if err := c.SetDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, line); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); err != nil || got != line {
			return fmt.Errorf("sent %q, got %q: %w", line, got, err)
		}
		k.lines.Add(1)
		select {
		case <-k.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// goOn waits until every flow, on average, has said three lines more, and
// asserts that none is lost.
func (k *talks) goOn(when string) {
	k.t.Helper()
	k.mu.Lock()
	want := k.lines.Load() + int64(3*k.open)
	k.mu.Unlock()
	k.eventually("lines, "+when, func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if got := k.lines.Load(); got < want && len(k.lost) == 0 {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.lost) > 0 {
		k.t.Fatalf("%s, of %d flows were lost: %q", when, k.open, k.lost)
	}
	k.t.Logf("%s: %d flows live, %d lines", when, k.open, k.lines.Load())
}
