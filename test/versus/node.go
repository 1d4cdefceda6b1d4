package versus

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"saru/conntable"
	"saru/internal/control"
	"saru/internal/seal"
	"saru/internal/syncd"
	"saru/syncproto/kernelsync"
	"saru/syncproto/peer"
)

const (
	key          = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	kernelBuffer = 4096 // bytes of a datagram of the kernel's sync thread
	timeout      = 900 * time.Second
)

// A paperKernel is told what a kernel would be told, in its own words.
type paperKernel struct {
	buf      []byte
	injected atomic.Uint64
	looked   atomic.Bool
}

func (k *paperKernel) Inject(conns []conntable.Connection) error {
	for len(conns) > 0 {
		b, n, err := kernelsync.AppendMessage(k.buf[:0], 1, kernelBuffer, conns)
		if err != nil {
			return err
		}
		k.buf, conns = b, conns[n:]
		k.injected.Add(uint64(n))
	}
	return nil
}

func (k *paperKernel) Delete(conntable.Connection) error { return nil }

func (k *paperKernel) Settle(context.Context) error { return nil }

func (k *paperKernel) Lost() uint64 { return 0 }

// Entries has none at start, and afterwards cannot be read, so that nothing is
// audited.
func (k *paperKernel) Entries(func() error, func(*syncd.Entry)) error {
	if k.looked.Swap(true) {
		return errors.New("a kernel of paper has no table to read")
	}
	return nil
}

// Services are those of flow.
func (k *paperKernel) Services() (syncd.Services, error) {
	s := syncd.Services{Targets: map[syncd.Target]struct{}{}}
	for i := range services * servers {
		c := flow(i)
		s.Targets[syncd.Target{Virtual: c.Virtual, Protocol: c.Protocol, Dest: c.Dest}] = struct{}{}
	}
	return s, nil
}

func (k *paperKernel) Stats() syncd.KernelStats {
	return syncd.KernelStats{Source: "paper", Injected: k.injected.Load()}
}

const (
	services = 10
	servers  = 4 // of each service
)

// flow is flow i.
func flow(i int) conntable.Connection {
	n := uint32(i) * 2654435761 // all different, in no order
	s := byte(i % services)
	return conntable.Connection{
		Key: conntable.Key{
			Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{100 + byte(n>>30), byte(n >> 22), byte(n >> 14), byte(n >> 6)}), 1024+uint16(n&63)),
			Virtual:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, 100 + s}), 443),
			Protocol: 6,
		},
		Dest:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, s, 10 + byte(i/services%servers)}), 443),
		State: 1, Flags: conntable.FlagFwdGate, Timeout: timeout,
	}
}

// Node runs syncd's engine under a name on eth0, with its status at socket,
// until it is told to end. At SIGUSR1 its kernel tells of so many flows, so many
// a second, or as fast as it can at 0.
func Node(name, socket string, flows, rate int) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	begin := make(chan os.Signal, 1)
	signal.Notify(begin, syscall.SIGUSR1)
	keys, err := seal.ParseKeyring([]byte(key))
	if err != nil {
		return err
	}
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	udp, err := peer.NewUDP(peer.UDPConfig{Interface: ifi, Group: peer.DefaultGroup})
	if err != nil {
		return err
	}
	defer udp.Close()
	e := syncd.New(syncd.Config{Node: name, Keys: keys, Transport: udp, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Limit: 4 * flows})
	e.SetKernel(&paperKernel{})
	srv, err := control.Listen("syncd", socket, e.Handler())
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.Run(ctx) })
	g.Go(func() error { return srv.Run(ctx) })
	messages := kernelMessages(flows)
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-begin:
			return tell(ctx, e, messages, flows, rate)
		}
	})
	return g.Wait()
}

// kernelMessages are those in which a kernel tells of n flows.
func kernelMessages(n int) (out [][]byte) {
	conns := make([]conntable.Connection, 0, 255)
	for i := range n {
		conns = append(conns, flow(i))
		for len(conns) == cap(conns) || i == n-1 && len(conns) > 0 {
			d, m, err := kernelsync.AppendMessage(nil, 1, kernelBuffer, conns)
			if err != nil {
				panic(err) // flow makes what can be told
			}
			out = append(out, d)
			conns = conns[:copy(conns, conns[m:])]
		}
	}
	return out
}

func tell(ctx context.Context, e *syncd.Engine, messages [][]byte, flows, rate int) error {
	var dec kernelsync.Decoder
	var conns []conntable.Connection
	start, told := time.Now(), 0
	for _, m := range messages {
		conns = conns[:0]
		if err := dec.Decode(m, func(c *conntable.Connection) { conns = append(conns, *c) }); err != nil {
			return err
		}
		e.CapturedAll(conns)
		told += len(conns)
		if rate == 0 {
			continue
		}
		ahead := time.Duration(told)*time.Second/time.Duration(rate) - time.Since(start)
		if ahead > time.Millisecond {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(ahead):
			}
		}
	}
	return nil
}
