package nft_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/lan"
	"saru/partition/nft"
)

// A LAN of namespaces: a switch, a client, and directors which answer clients
// themselves. Nothing outside these namespaces is touched.

var (
	vip       = netip.MustParseAddr("10.9.0.100")
	sharedMAC = net.HardwareAddr{0x02, 0x00, 0x5e, 0x00, 0x01, 0xc9}
	port      = uint16(4242)
)

// A host is a network namespace.
type host struct {
	t      testing.TB
	name   string
	handle netns.NsHandle
}

// newHost makes a namespace with lo up, or skips the test.
func newHost(t testing.TB, name string) *host {
	t.Helper()
	h := &host{t: t, name: name, handle: netns.None()}
	err := onThread(func() (err error) {
		h.handle, err = netns.New()
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs root for network namespaces")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.handle.Close() })
	return h
}

// onThread runs f on a thread of its own, which ends with it, so f may change
// the thread's namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// do runs f inside the namespace.
func (h *host) do(f func() error) {
	h.t.Helper()
	if err := h.try(f); err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
}

func (h *host) try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(h.handle); err != nil {
			return err
		}
		return f()
	})
}

func (h *host) run(command string) string {
	h.t.Helper()
	var out []byte
	h.do(func() (err error) {
		args := strings.Fields(command)
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %.500s", command, err, out)
		}
		return nil
	})
	return string(out)
}

// plug joins the host's eth0 to the switch's bridge.
func (h *host) plug(sw *host, addr string) {
	h.t.Helper()
	sw.do(func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		port := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(h.handle)}
		port.Name = "to-" + h.name
		if err := netlink.LinkAdd(port); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(port))
	})
	h.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		ip, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(eth0, ip), netlink.LinkSetUp(eth0))
	})
}

// A director has the filter and serves the VIP itself.
type director struct {
	*host
	filter filter
	lan    *lan.LAN
	owns   partition.Set
	own    net.HardwareAddr // where frames come to it, if not to the shared MAC
	shared net.HardwareAddr // that is not sharedMAC, of another share
	mu     sync.Mutex
	heard  map[uint32]int // datagram number -> copies
	conns  []net.Conn

	// What the test of generated packets keeps.
	rest     partition.Set
	settling partition.Set
	conn     *nftables.Conn
	noted    *nftables.Table
	arrivals *nftables.NamedObj
	frames   int
}

// A network is a switch with a client and directors.
type network struct {
	t         testing.TB
	sw        *host
	client    *host
	directors []*director
	behind    bool // IPVS is behind the filters
	next      uint32
}

func config(lease time.Duration) nft.Config {
	return nft.Config{
		Name: "saru", Interface: "eth0", MAC: sharedMAC, Lease: lease, ShareID: 1,
		Plan: partition.Plan{
			VIPs: partition.Hosts(vip), Buckets: 256, Seed: 0x5a17,
			Default: partition.Division{Sense: partition.SrcPort},
		},
	}
}

// newNetwork makes n directors that divide the buckets evenly. Their filters
// are open for business, their leases not.
func newNetwork(t testing.TB, n int, cfg nft.Config) *network {
	t.Helper()
	w := &network{t: t, sw: newHost(t, "switch"), client: newHost(t, "client")}
	if err := w.sw.try(nft.Probe); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	w.sw.do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		bridge.Name = "br0"
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge))
	})
	w.client.plug(w.sw, "10.9.0.1/24")
	var members []partition.Member
	for i := range n {
		members = append(members, partition.Member{Name: fmt.Sprintf("d%d", i+1), Weight: 100})
	}
	owners := partition.Assign(nil, members, cfg.Plan.Buckets)
	for i, m := range members {
		d := &director{host: newHost(t, m.Name), owns: partition.Owned(owners, m.Name), heard: make(map[uint32]int)}
		d.plug(w.sw, fmt.Sprintf("10.9.0.%d/24", i+2))
		d.open(cfg, i == 0)
		d.serve()
		w.directors = append(w.directors, d)
	}
	return w
}

// open starts the filter and the LAN; the first director answers ARP.
func (d *director) open(cfg nft.Config, answers bool) {
	d.t.Helper()
	d.do(func() (err error) {
		if d.filter, err = openFilter(cfg); err != nil {
			return err
		}
		d.lan, err = lan.Open(lan.Config{
			Interface: "eth0", VIPs: partition.Hosts(vip), MAC: cfg.MAC,
			Answer: func(netip.Addr) bool { return answers },
		})
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.lan.Run(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
		if err := d.try(func() error { return errors.Join(d.lan.Close(), d.filter.Close()) }); err != nil {
			d.t.Error(err)
		}
	})
	<-d.lan.Ready()
	if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); err != nil {
		d.t.Fatal(err)
	}
}

// serve counts the numbered datagrams that reach the VIP, and greets TCP
// connections with the director's name.
func (d *director) serve() {
	d.t.Helper()
	var pc net.PacketConn
	var ln net.Listener
	d.do(func() (err error) {
		if pc, err = net.ListenPacket("udp4", fmt.Sprintf("%v:%d", vip, port)); err != nil {
			return err
		}
		ln, err = net.Listen("tcp4", fmt.Sprintf("%v:%d", vip, port))
		return err
	})
	d.hearDatagrams(pc)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns = append(d.conns, c)
			d.mu.Unlock()
			wg.Go(func() { d.talk(c) })
		}
	})
	d.t.Cleanup(func() {
		ln.Close()
		d.mu.Lock()
		for _, c := range d.conns {
			c.Close()
		}
		d.mu.Unlock()
		wg.Wait()
	})
}

// hearDatagrams counts the numbered datagrams that come. There is room for all
// that a test sends, however late this process has its turn.
func (d *director) hearDatagrams(pc net.PacketConn) {
	d.t.Helper()
	raw, err := pc.(*net.UDPConn).SyscallConn()
	if err != nil {
		d.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if n >= 4 {
				d.mu.Lock()
				d.heard[binary.BigEndian.Uint32(buf)]++
				d.mu.Unlock()
			}
		}
	}()
	d.t.Cleanup(func() {
		pc.Close()
		<-done
	})
}

// talk tells a client the director's name, at once and for each byte it sends.
func (d *director) talk(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 1); ; {
		if _, err := c.Write([]byte(d.name)); err != nil {
			return
		}
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

func (d *director) copies(number uint32) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.heard[number]
}

// beat arms and confirms heartbeat n.
func (d *director) beat(n uint64) {
	d.t.Helper()
	if err := d.filter.Arm(n); err != nil {
		d.t.Fatalf("%s: arm %d: %v", d.name, n, err)
	}
	if err := d.filter.Confirm(n); err != nil {
		d.t.Fatalf("%s: confirm %d: %v", d.name, n, err)
	}
}

func (w *network) beat(n uint64) {
	w.t.Helper()
	for _, d := range w.directors {
		d.beat(n)
	}
}

// send sends one numbered datagram of the given size from a source port.
func (w *network) send(from uint16, size int) uint32 {
	w.t.Helper()
	w.next++
	number := w.next
	if err := w.client.try(func() error { return sendOne(from, size, number) }); err != nil {
		w.t.Fatal(err)
	}
	return number
}

// sendMany sends one datagram from each port, on one thread, and returns their
// numbers.
func (w *network) sendMany(ports []uint16, size int) []uint32 {
	w.t.Helper()
	numbers := make([]uint32, len(ports))
	w.client.do(func() error {
		for i, p := range ports {
			w.next++
			numbers[i] = w.next
			if err := sendOne(p, size, w.next); err != nil {
				return err
			}
		}
		return nil
	})
	return numbers
}

func sendOne(from uint16, size int, number uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, size)
	binary.BigEndian.PutUint32(buf, number)
	return errors.Join(
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(from), Addr: [4]byte{10, 9, 0, 1}}),
		unix.Sendto(fd, buf, 0, &unix.SockaddrInet4{Port: int(port), Addr: vip.As4()}))
}

// arrived waits until each datagram has an acceptor, or for patience, and
// returns for each how many copies each director got.
func (w *network) arrived(numbers []uint32, patience time.Duration) [][]int {
	deadline := time.Now().Add(patience)
	for {
		got, missing := make([][]int, len(numbers)), false
		for i, n := range numbers {
			total := 0
			for _, d := range w.directors {
				c := d.copies(n)
				got[i] = append(got[i], c)
				total += c
			}
			missing = missing || total == 0
		}
		if !missing || time.Now().After(deadline) {
			return got
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}

// resolve makes the client learn the VIP's MAC, so that what follows is not
// held back in its ARP queue.
func (w *network) resolve() {
	w.t.Helper()
	w.client.run("ip neigh replace 10.9.0.100 lladdr " + sharedMAC.String() + " dev eth0 nud permanent")
}

// dial opens a TCP connection to the VIP from a source port.
func (w *network) dial(from, to uint16, patience time.Duration) (c net.Conn, err error) {
	err = w.client.try(func() error {
		d := net.Dialer{
			Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 9, 0, 1), Port: int(from)},
			Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			},
		}
		c, err = d.Dial("tcp4", fmt.Sprintf("%v:%d", vip, to))
		return err
	})
	return c, err
}

// hear reads one greeting.
func hear(c net.Conn, patience time.Duration) (string, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 2)
	n, err := io.ReadFull(c, buf)
	return string(buf[:n]), err
}

// greeting opens a TCP connection from a source port and returns who answered.
func (w *network) greeting(from uint16, patience time.Duration) (string, error) {
	c, err := w.dial(from, port, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return hear(c, patience)
}

// ping sends echo requests to the VIP and returns how many answers each had.
func (w *network) ping(requests int) (answers []int) {
	w.t.Helper()
	w.client.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		answers = make([]int, requests)
		for seq := range requests {
			// Type, code, checksum, identifier 0x5a17, sequence (RFC 792).
			echo := []byte{8, 0, 0, 0, 0x5a, 0x17, 0, byte(seq)}
			binary.BigEndian.PutUint16(echo[2:], ^uint16(0x0800+0x5a17+seq))
			if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: vip.As4()}); err != nil {
				return err
			}
		}
		// Half a second after the last answer no other will come.
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 500_000})
		for buf := make([]byte, 256); ; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil
			}
			if reply := buf[20:n]; len(reply) >= 8 && reply[0] == 0 && int(reply[7]) < requests {
				answers[reply[7]]++
			}
		}
	})
	return answers
}

func (h *host) mac(device string) (mac string) {
	h.t.Helper()
	h.do(func() error {
		link, err := netlink.LinkByName(device)
		if err == nil {
			mac = link.Attrs().HardwareAddr.String()
		}
		return err
	})
	return mac
}
