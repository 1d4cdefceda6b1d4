package ipvs

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"saru/internal/testnet"
)

// Where the master thread sends in TestMeasureWays, and how many of its
// datagrams each way has room for.
const (
	waysPort = 8847
	waysRoom = tunQueue
)

// A tapWay is a way to have what the master thread sends on an interface of
// namespace own: a TUN interface, lo, or one end of a veth pair.
type tapWay struct {
	name, iface string
	own         testnet.Namespace
	ns          testnet.Namespace // where the reader is
	batch       int               // datagrams that a system call reads
}

// A wayReader counts what comes by a way.
type wayReader struct {
	read  func() (n int, from netip.Addr, err error)
	drops func() (int, error) // datagrams there was no room for, as the kernel counts
	die   func()              // what becomes of a way whose reader dies

	still       sync.Mutex // held while nobody shall read
	came, calls atomic.Int64
	from        atomic.Value // netip.Addr
}

// open makes the way, and reads until the test ends.
func (w tapWay) open(t *testing.T) *wayReader {
	h := testnet.Handle(t, w.own)
	var r *wayReader
	switch w.iface {
	case "syncd0":
		r = w.readTUN(t, h)
	case "lo":
		r = w.readUDP(t, "lo")
	default:
		testnet.Cable(t, h, w.iface, w.ns, "peer0")
		testnet.Up(t, testnet.Handle(t, w.ns), "peer0")
		testnet.Up(t, h, w.iface, tunAddr.String()+"/32")
		r = w.readUDP(t, "peer0")
	}
	var done sync.WaitGroup
	done.Go(r.run)
	t.Cleanup(func() { r.die(); done.Wait() })
	return r
}

func (r *wayReader) run() {
	for {
		n, from, err := r.read()
		if err != nil {
			return
		}
		r.came.Add(int64(n))
		r.calls.Add(1)
		r.from.Store(from)
		r.still.Lock()
		//lint:ignore SA2001 waits while it is held
		r.still.Unlock()
	}
}

func (w tapWay) readTUN(t *testing.T, h *netlink.Handle) *wayReader {
	f, err := openTUN(w.iface)
	must(t, err)
	link, err := h.LinkByName(w.iface)
	must(t, err)
	t.Cleanup(func() { must(t, h.LinkDel(link)) }) // a reader's death leaves it
	must(t, setupTUN(w.iface))
	buf, to := make([]byte, tunMTU), netip.AddrPortFrom(syncGroup, waysPort)
	return &wayReader{
		die: func() { f.Close() },
		read: func() (int, netip.Addr, error) {
			n, err := f.Read(buf)
			if _, ours := payload(buf[:max(n, 0)], tunAddr, to); !ours {
				return 0, tunAddr, err
			}
			return 1, tunAddr, err
		},
		drops: func() (int, error) {
			link, err := h.LinkByName(w.iface)
			if err != nil {
				return 0, err
			}
			return int(link.Attrs().Statistics.TxDropped), nil
		},
	}
}

// filter sets the reverse-path filter at both ends.
func (w tapWay) filter(t *testing.T, strict string) {
	for _, ns := range []testnet.Namespace{w.own, w.ns} {
		must(t, testnet.Within(ns, func() error {
			return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte(strict), 0)
		}))
	}
}

// joined is a socket that hears the group on an interface.
func joined(t *testing.T, ns testnet.Namespace, iface string) (c *net.UDPConn) {
	must(t, testnet.Within(ns, func() error {
		ifi, err := net.InterfaceByName(iface)
		if err == nil {
			c, err = net.ListenMulticastUDP("udp4", ifi, net.UDPAddrFromAddrPort(netip.AddrPortFrom(syncGroup, waysPort)))
		}
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// heard counts what waits in c.
func heard(t *testing.T, c *net.UDPConn) (n int) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	for {
		if _, err := c.Read(make([]byte, tunMTU)); err != nil {
			return n
		}
		n++
	}
}

func (w tapWay) readUDP(t *testing.T, iface string) *wayReader {
	c := joined(t, w.ns, iface)
	sys, err := c.SyscallConn()
	must(t, err)
	must(t, sys.Control(func(fd uintptr) { // which the kernel doubles
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, waysRoom*truesize(44)/2)
	}))
	must(t, err)
	ms := make([]ipv4.Message, w.batch)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, tunMTU)}
	}
	pc := ipv4.NewPacketConn(c)
	return &wayReader{
		die: func() {
			c.Close()
			// A namespace goes with its last process, and its interfaces with it.
			if h, err := netlink.NewHandleAt(w.ns, unix.NETLINK_ROUTE); err == nil {
				if link, err := h.LinkByName("peer0"); err == nil {
					h.LinkDel(link)
				}
				h.Close()
			}
		},
		read: func() (int, netip.Addr, error) {
			n, err := pc.ReadBatch(ms, 0)
			if err != nil {
				return 0, netip.Addr{}, err
			}
			return n, ms[0].Addr.(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
		},
		drops: func() (n int, err error) {
			err = testnet.Within(w.ns, func() error {
				s, err := backupSocket(netip.AddrPortFrom(netip.IPv4Unspecified(), waysPort))
				n = int(s.drops)
				return err
			})
			return n, err
		},
	}
}

// A waySpent is what was spent until a moment.
type waySpent struct {
	at                   time.Time
	idle, master, reader time.Duration
}

func spent(t *testing.T) waySpent {
	t.Helper()
	s := waySpent{at: time.Now()}
	stat, err := os.ReadFile("/proc/stat") // proc(5): the fourth number is idle, in hundredths
	must(t, err)
	ticks, err := strconv.Atoi(strings.Fields(string(stat))[4])
	must(t, err)
	s.idle = time.Duration(ticks) * 10 * time.Millisecond
	s.master, _ = threadRan(t, "ipvs-m:")
	var all, me unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &all))
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &me))
	s.reader = time.Duration(all.Utime.Nano() + all.Stime.Nano() - me.Utime.Nano() - me.Stime.Nano())
	return s
}

// threadRan is for how long the kernel's thread of that name ran, and how many
// times (Documentation/scheduler/sched-stats.rst).
func threadRan(t *testing.T, prefix string) (ran time.Duration, times int) {
	t.Helper()
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	must(t, err)
	for _, comm := range comms {
		if name, err := os.ReadFile(comm); err != nil || !strings.HasPrefix(string(name), prefix) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(comm), "schedstat"))
		must(t, err)
		f := strings.Fields(string(stat))
		ns, err := strconv.ParseInt(f[0], 10, 64)
		must(t, err)
		times, err = strconv.Atoi(f[2])
		must(t, err)
		ran += time.Duration(ns)
	}
	return ran, times
}
