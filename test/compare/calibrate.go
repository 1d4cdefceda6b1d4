package compare

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	pongs    = 3000
	pongPort = 7
)

// Calibrate returns the median time of a datagram's way to another network
// namespace and back, over a veth pair, by two blocking processes' means: in
// microseconds. It exercises what a synchronised connection does too: system
// calls, softirqs, the scheduler's wake-ups.
func Calibrate(ctx context.Context) (float64, error) {
	here, there, closeBoth, err := pair()
	if err != nil {
		return 0, err
	}
	defer closeBoth()
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := there.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = there.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	to := netip.MustParseAddrPort("10.98.0.2:7")
	took := make([]time.Duration, 0, pongs)
	b := make([]byte, 64)
	for range pongs {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		start := time.Now()
		if err := here.SetDeadline(start.Add(time.Second)); err != nil {
			return 0, err
		}
		if _, err := here.WriteToUDPAddrPort(b[:32], to); err != nil {
			return 0, err
		}
		if _, _, err := here.ReadFromUDPAddrPort(b); err != nil {
			continue // lost: the first may wait for ARP
		}
		took = append(took, time.Since(start))
	}
	if len(took) < pongs/2 {
		return 0, errors.New("calibrate: most datagrams were lost")
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1000, nil
}

// pair makes two namespaces with a veth pair, and a socket in each.
func pair() (here, there *net.UDPConn, closeBoth func(), err error) {
	// The thread goes with the goroutine, and the namespaces with the sockets.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		here, there, err = pairHere()
	}()
	<-done
	return here, there, func() { here.Close(); there.Close() }, err
}

func pairHere() (here, there *net.UDPConn, err error) {
	far, err := netns.New()
	if err != nil {
		return nil, nil, err
	}
	defer far.Close()
	near, err := netns.New()
	if err != nil {
		return nil, nil, err
	}
	defer near.Close()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cal0"}, PeerName: "cal1", PeerNamespace: netlink.NsFd(int(far))}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, nil, err
	}
	if here, err = address("cal0", "10.98.0.1"); err != nil {
		return nil, nil, err
	}
	if err = netns.Set(far); err == nil {
		there, err = address("cal1", "10.98.0.2")
	}
	if err != nil {
		here.Close()
	}
	return here, there, err
}

// address sets the interface of this thread's namespace up and listens on it.
func address(name, ip string) (*net.UDPConn, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	a, err := netlink.ParseAddr(ip + "/24")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link)); err != nil {
		return nil, err
	}
	return net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(ip), Port: pongPort})
}
