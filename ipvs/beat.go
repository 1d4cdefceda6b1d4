package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

const (
	// beatPort is both ends' UDP port of every heartbeat entry.
	beatPort = 8849
	// beatTimeout is what an entry is injected with. The kernel puts its own
	// UDP timeout in its place at each ping.
	beatTimeout = 60 * time.Second
	// maxBeats bounds the entries: one per address of 127.81.0.0/17.
	maxBeats = 1 << 15
)

var (
	// beatNet holds the clients of the heartbeat entries.
	beatNet = netip.MustParsePrefix("127.81.0.0/17")
	// beatAddr is the virtual address and the real server of all of them.
	beatAddr = netip.MustParseAddr("127.81.255.254")
)

// IsBeat says whether c is one of a Tap's heartbeat entries, which no audit
// and no peer should see.
func IsBeat(c *conntable.Connection) bool {
	return c.Protocol == kernelsync.ProtoUDP && c.Virtual.Port() == beatPort &&
		c.Virtual.Addr() == beatAddr && beatNet.Contains(c.Client.Addr())
}

// beatEntry returns the heartbeat's entry number i.
func beatEntry(i int) conntable.Connection {
	base := beatNet.Addr().As4()
	client := netip.AddrFrom4([4]byte{base[0], base[1], byte(i >> 8), byte(i)})
	c := conntable.Connection{
		Dest:    netip.AddrPortFrom(beatAddr, beatPort),
		Flags:   conntable.FlagFwdLocal,
		Timeout: beatTimeout,
	}
	c.Client = netip.AddrPortFrom(client, beatPort)
	c.Virtual = netip.AddrPortFrom(beatAddr, beatPort)
	c.Protocol = kernelsync.ProtoUDP
	return c
}

// beatIndex is the inverse of beatEntry, for c with IsBeat.
func beatIndex(c *conntable.Connection) int {
	a := c.Client.Addr().As4()
	return int(a[2])<<8 | int(a[3])
}

// beatCount is how many entries it takes until the kernel tells of the first
// one again. It tells of an entry at a packet if its last record is at least
// the refresh period old (ip_vs_sync.c, ip_vs_sync_conn_needed); a quarter is
// added for ticks that come early.
func beatCount(rate int, refresh time.Duration) int {
	n := int(float64(rate)*refresh.Seconds()*1.25) + 1
	return min(max(n, 2), maxBeats)
}

// A pinger sends the heartbeat's packets: from the entry's client to its
// virtual address, where the same socket takes them, since the entry forwards
// to the machine itself.
type pinger struct {
	fd  int
	buf [16]byte
}

func newPinger() (*pinger, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("heartbeat socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: beatAddr.As4(), Port: beatPort}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("heartbeat socket on %v port %d: %w", beatAddr, beatPort, err)
	}
	return &pinger{fd: fd}, nil
}

// ping sends from entry's client, and discards what came of earlier pings.
func (p *pinger) ping(entry *conntable.Connection) error {
	for {
		_, _, err := unix.Recvfrom(p.fd, p.buf[:], unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) || err == nil {
			continue
		}
		break
	}
	oob := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: entry.Client.Addr().As4()})
	to := &unix.SockaddrInet4{Addr: beatAddr.As4(), Port: beatPort}
	if err := unix.Sendmsg(p.fd, []byte("beat"), oob, to, 0); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	return nil
}

func (p *pinger) close() error { return unix.Close(p.fd) }
