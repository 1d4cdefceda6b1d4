package usersync_test

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/ipvs/usersync"
)

// How much one block of TestMeasureCost sends, and how many blocks there are of
// each kind. A block is over before its first entry expires.
const (
	costPackets = 3000
	costBlocks  = 5
)

// TestMeasureCost: what the module adds to a packet that changes nothing and to
// one that makes an entry. To be run in a guest whose clock counts
// instructions (SARU_LAB_ACCEL=icount, one processor), where the kinds of
// blocks differ by what the kernel did and by hardly anything else.
func TestMeasureCost(t *testing.T) {
	if os.Getenv("SARU_MEASURE") == "" {
		t.Skip("a measurement; set SARU_MEASURE=1")
	}
	if !inside(t) {
		return
	}
	s := newSite(t)
	must(t, command("ipvsadm", "--set", "1", "1", "1"))
	s.sink(t)
	src := s.newSource(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	image, err := os.ReadFile(moduleFile())
	must(t, err)
	unload(t)

	kinds := []struct {
		name           string
		loaded, listen bool
		read           bool
		opens, passes  []time.Duration // of one packet
	}{
		{name: "not loaded"},
		{name: "nobody listens", loaded: true},
		{name: "a listener", loaded: true, listen: true},
		{name: "a listener that reads", loaded: true, listen: true, read: true},
	}
	for block := range costBlocks + 1 {
		for i := range kinds {
			k := &kinds[i]
			var listener *usersync.Listener
			finish := func() {}
			if k.loaded {
				must(t, unix.InitModule(image, ""))
			}
			if k.listen {
				listener, err = usersync.Listen(usersync.Handler{Event: func(*usersync.Record) {}, Lost: func(why error) { t.Error(why) }})
				must(t, err)
			}
			if k.read {
				finish = reading(t, listener)
			}
			// What loading has left for later shall be done before.
			time.Sleep(time.Second)
			passes := src.send(t, func(int) uint16 { return 1000 })
			opens := src.send(t, func(i int) uint16 { return uint16(2000 + i) })
			if k.listen {
				st, err := dialModule(t).Stats()
				must(t, err)
				if st.New != costPackets+1 || st.Dropped != 0 || st.Overruns != 0 {
					t.Errorf("%s: %+v, want %d new ones told and none lost", k.name, st, costPackets+1)
				}
			}
			time.Sleep(4 * time.Second) // of the guest's clock: all entries expire
			finish()
			if k.listen {
				must(t, listener.Close())
			}
			if k.loaded {
				unload(t)
			}
			if block > 0 { // the first ones resolve addresses, and fill caches
				k.passes, k.opens = append(k.passes, passes), append(k.opens, opens)
			}
		}
	}
	for i, k := range kinds {
		passes, opens := median(k.passes), median(k.opens)
		t.Logf("%s: a packet %v (%v to %v), one that makes an entry %v (%v to %v)",
			k.name, passes, slices.Min(k.passes), slices.Max(k.passes), opens, slices.Min(k.opens), slices.Max(k.opens))
		if i > 0 {
			t.Logf("    %v and %v more", passes-median(kinds[0].passes), opens-median(kinds[0].opens))
		}
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// reading runs the listener until the function is called that it returns.
func reading(t *testing.T, l *usersync.Listener) (finish func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		must(t, <-done)
	}
}

// sink takes the datagrams of the service at the real server, where most find
// the queue full.
func (s *site) sink(t *testing.T) {
	t.Helper()
	must(t, in(s.server, func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(serverIP), Port: 5353})
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		return c.SetReadBuffer(1)
	}))
}

// A source sends datagrams of any port from the client.
type source struct {
	fd     int
	packet []byte
	to     unix.SockaddrInet4
}

func (s *site) newSource(t *testing.T) *source {
	t.Helper()
	src := &source{packet: make([]byte, 20+8+8)}
	copy(src.to.Addr[:], net.ParseIP(vip).To4())
	ip, udp := src.packet[:20], src.packet[20:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP // the kernel adds length and checksum
	copy(ip[12:], net.ParseIP(clientIP).To4())
	copy(ip[16:], src.to.Addr[:])
	binary.BigEndian.PutUint16(udp[2:], 53)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	must(t, in(s.client, func() (err error) {
		src.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	t.Cleanup(func() { unix.Close(src.fd) })
	return src
}

// send sends costPackets datagrams, the ith from the port that from returns,
// and returns what each took: on one processor a datagram has gone all its way
// when the call returns.
func (s *source) send(t *testing.T, from func(i int) uint16) time.Duration {
	t.Helper()
	start := time.Now()
	for i := range costPackets {
		binary.BigEndian.PutUint16(s.packet[20:], from(i))
		if err := unix.Sendto(s.fd, s.packet, 0, &s.to); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(start) / costPackets
}
