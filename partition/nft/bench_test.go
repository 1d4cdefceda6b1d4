package nft_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/forward"
	"saru/partition/nft"
)

// BenchmarkAdmission measures what a packet costs the CPU, from the sender's
// system call to the receiver's, all on one thread: the kernel does the
// receiver's part in the sender's time. The ways that a packet can go are
// tried in turn, packet after packet of one size, so that what else the
// machine does falls on all alike; the figures are medians.
//
//	ns-none, ns-admitted   taken by a socket, without any table and by ours
//	admitted/none          their ratio
//	cluster/none           of iptables -m cluster, which asks connection tracking
//	queue/none             of package queue; the process's CPU, its readers' too
//	own/none               of package forward, a frame of an own bucket
//	ns-refused, ns-dropped another director's: refused at ingress, and by the
//	                       same rules in the input hook
//	ns-unclustered         refused by -m cluster
//	ns-first               dropped by the first and only rule of the input hook
//	refused/dropped        the ratio of what each costs beyond a frame that no
//	                       protocol wants: the goal is below 0.5
//	ns-handed              handed to another director by package forward
func BenchmarkAdmission(b *testing.B) {
	for _, c := range []struct {
		name string
		plan partition.Plan
		size int
	}{
		{"UDP-64", plain(), 64},
		{"UDP-1400", plain(), 1400},
		{"UDP-64-services", persistent(), 64},
	} {
		b.Run(c.name, func(b *testing.B) {
			ways := newWays(b, c.plan, c.size)
			cost := make(map[string][]float64)
			for b.Loop() {
				for _, w := range ways {
					packets := 8192
					if w.name == "queue" { // each batch waits for a reader's turn
						packets = 512
					}
					cost[w.name] = append(cost[w.name], w.run(b, packets))
				}
			}
			ns := func(name string) float64 { return median(cost[name]) }
			b.ReportMetric(0, "ns/op") // of no interest
			for _, w := range ways {
				b.ReportMetric(ns(w.name), "ns-"+w.name)
			}
			for _, name := range []string{"admitted", "cluster", "queue", "own"} {
				if _, tried := cost[name]; tried {
					b.ReportMetric(ns(name)/ns("none"), name+"/none")
				}
			}
			b.ReportMetric((ns("refused")-ns("nothing"))/(ns("dropped")-ns("nothing")), "refused/dropped")
		})
	}
}

func plain() partition.Plan { return config(time.Minute).Plan }

// persistent is a plan in which the packets belong to one of many services
// that are divided by source address.
func persistent() partition.Plan {
	p := plain()
	for i := range uint16(200) {
		p.Services = append(p.Services, partition.Service{
			VIP: partition.Hosts(vip)[0], Port: port + i, Division: partition.Division{Sense: partition.SrcAddr, Bits4: 24},
		})
	}
	return p
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// A way is one that a packet can go: from the client over a link of its own to
// a director that does one thing with it.
type way struct {
	name  string
	out   *batch
	in    *batch // nil if no socket gets it
	taken int    // how many of a batch the socket gets
	clock int32  // whose CPU time counts
}

var wayNames = []string{
	"nothing", "none", "admitted", "cluster", "queue", "own", "refused", "dropped", "unclustered", "first", "handed",
}

// newWays returns all of them. The sources of the packets of a batch differ.
func newWays(b *testing.B, plan partition.Plan, size int) []*way {
	client := newHost(b, "client")
	var ways []*way
	for i, name := range wayNames {
		d := newHost(b, name)
		w := &way{name: name, clock: unix.CLOCK_THREAD_CPUTIME_ID}
		device := fmt.Sprint("eth", i)
		client.join(d, device)
		d.run("ip addr add 10.9.0.100/32 dev lo")
		d.run("ip route add default dev eth0")
		to := d.mac("eth0")
		switch name {
		case "admitted":
			to = sharedMAC.String()
			d.filter(b, plan, partition.FullSet(plan.Buckets))
		case "refused":
			to = sharedMAC.String()
			d.filter(b, plan, partition.Set{})
		case "dropped":
			d.filter(b, plan, partition.Set{})
			d.run("nft delete chain inet saru ingress")
			d.run("nft delete table netdev saru")
			d.run("ip link set eth0 address " + sharedMAC.String())
			to = sharedMAC.String()
		case "queue":
			to = sharedMAC.String()
			w.clock = unix.CLOCK_PROCESS_CPUTIME_ID
			d.filterBy(b, openQueues, plan, partition.FullSet(plan.Buckets))
		case "own", "handed":
			d.forward(b, plan, name == "own")
		case "cluster", "unclustered":
			d.cluster(b, name == "cluster")
		case "first":
			d.run("nft add table inet other")
			d.run("nft add chain inet other input { type filter hook input priority 0 ; }")
			d.run("nft add rule inet other input ip daddr 10.9.0.100 drop")
		}
		w.out = newBatch(frames(b, client.mac(device), to, name == "nothing", size))
		client.do(func() (err error) {
			ifi, err := net.InterfaceByName(device)
			if err != nil {
				return err
			}
			w.out.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			b.Cleanup(func() { unix.Close(w.out.fd) })
			return errors.Join(
				unix.SetsockoptInt(w.out.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
				unix.Bind(w.out.fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index}))
		})
		if slices.Contains([]string{"none", "admitted", "cluster", "queue", "own"}, name) {
			w.taken = len(w.out.headers)
			w.in = newBatch(buffers(w.taken, size))
			d.do(func() (err error) {
				w.in.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					return err
				}
				b.Cleanup(func() { unix.Close(w.in.fd) })
				return unix.Bind(w.in.fd, &unix.SockaddrInet4{Port: int(port), Addr: vip.As4()})
			})
		}
		ways = append(ways, w)
	}
	return ways
}

// filter opens a filter with a lease and some buckets.
func (h *host) filter(b *testing.B, plan partition.Plan, share partition.Set) {
	h.filterBy(b, func(cfg nft.Config) (filter, error) { return nft.Open(cfg) }, plan, share)
}

func (h *host) filterBy(b *testing.B, open func(nft.Config) (filter, error), plan partition.Plan, share partition.Set) {
	cfg := config(time.Hour)
	cfg.Plan = plan
	h.filterOf(b, open, cfg, share)
}

func (h *host) filterOf(b *testing.B, open func(nft.Config) (filter, error), cfg nft.Config, share partition.Set) {
	var f filter
	h.do(func() (err error) {
		f, err = open(cfg)
		return err
	})
	b.Cleanup(func() { f.Close() })
	if err := errors.Join(f.Apply(nft.Desired{Open: share, Rest: share}), f.Arm(1), f.Confirm(1)); err != nil {
		b.Fatal(err)
	}
}

// forward opens a filter for frames to the own MAC, and what hands frames on:
// none, or all.
func (h *host) forward(b *testing.B, plan partition.Plan, all bool) {
	cfg := config(time.Hour)
	cfg.Plan, cfg.Own = plan, true
	cfg.MAC, _ = net.ParseMAC(h.mac("eth0"))
	share, other := partition.FullSet(plan.Buckets), partition.Set{}
	if !all {
		share, other = other, share
	}
	h.filterOf(b, func(cfg nft.Config) (filter, error) { return nft.Open(cfg) }, cfg, share)
	h.do(func() error {
		f, err := forward.Open(cfg)
		if err == nil {
			b.Cleanup(func() { f.Close() })
			err = f.Set(forward.RoutesOf(share, share, []forward.Director{{MAC: nft.MAC{2, 0, 0, 0, 0, 9}, Open: other, Rest: other}}))
		}
		return err
	})
}

// cluster has iptables' match "cluster" drop what is not this node's, before
// anything else judges: of two nodes it is both, or none
// (linux/netfilter/xt_cluster.h).
func (h *host) cluster(b *testing.B, ours bool) {
	info := make([]byte, 16) // nodes, mask, seed, flags
	binary.NativeEndian.PutUint32(info, 2)
	if ours {
		binary.NativeEndian.PutUint32(info[4:], 3)
	}
	binary.NativeEndian.PutUint32(info[8:], 0x5a17)
	binary.NativeEndian.PutUint32(info[12:], 1) // what does not match
	h.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Name: "cluster", Family: nftables.TableFamilyIPv4})
		ch := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
		})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Match{Name: "cluster", Info: (*xt.Unknown)(&info)}, &expr.Verdict{Kind: expr.VerdictDrop},
		}})
		if err := c.Flush(); err != nil {
			b.Skip("no match \"cluster\" of iptables: ", err)
		}
		return nil
	})
}

// join makes a link to another host's eth0.
func (h *host) join(to *host, device string) {
	h.t.Helper()
	h.do(func() error {
		link := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(to.handle)}
		link.Name = device
		return errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link))
	})
	to.run("ip link set eth0 up")
}

// frames returns one batch of datagrams to the VIP, or of frames that no
// protocol wants.
func frames(t testing.TB, from, to string, unwanted bool, size int) [][]byte {
	src, err := net.ParseMAC(from)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := net.ParseMAC(to)
	if err != nil {
		t.Fatal(err)
	}
	ether := uint16(unix.ETH_P_IP)
	if unwanted {
		ether = 0x88b5 // for local experiments (IEEE 802)
	}
	var all [][]byte
	for i := range uint16(64) {
		data := make([]byte, size)
		udp := binary.BigEndian.AppendUint16(numbers(20000+i, port), uint16(8+size))
		h := ipv4Header(1+i, netip.MustParseAddr("192.0.2.7"), vip, partition.UDP, 8+size)
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		head := binary.BigEndian.AppendUint16(slices.Concat(dst, src), ether)
		all = append(all, slices.Concat(head, h, udp, []byte{0, 0}, data))
	}
	return all
}

func buffers(n, size int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = make([]byte, size)
	}
	return all
}

// run sends packets and returns the nanoseconds of CPU that each took.
func (w *way) run(b *testing.B, packets int) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := cpuTime(b, w.clock)
	for sent := 0; sent < packets; sent += len(w.out.headers) {
		w.out.do(b, unix.SYS_SENDMMSG, len(w.out.headers))
		if w.in != nil {
			w.in.do(b, unix.SYS_RECVMMSG, w.taken)
		}
	}
	return float64(cpuTime(b, w.clock)-start) / float64(packets)
}

func cpuTime(b *testing.B, clock int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

// A batch is the argument of sendmmsg and recvmmsg (socket(7)).
type batch struct {
	fd      int
	headers []mmsghdr
}

type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func newBatch(packets [][]byte) *batch {
	s := &batch{headers: make([]mmsghdr, len(packets))}
	for i, p := range packets {
		iov := &unix.Iovec{Base: &p[0]}
		iov.SetLen(len(p))
		s.headers[i].header.Iov = iov
		s.headers[i].header.SetIovlen(1)
	}
	return s
}

// do sends or receives the first of the batch, all of them: what the kernel, or
// a queue's reader, still has is waited for.
func (s *batch) do(b *testing.B, call uintptr, want int) {
	for done := 0; done < want; {
		n, _, errno := unix.Syscall6(call, uintptr(s.fd), uintptr(unsafe.Pointer(&s.headers[done])), uintptr(want-done), 0, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, 5000)
			if ready == 0 || err != nil && err != unix.EINTR {
				b.Fatalf("%d of %d came: %v", done, want, err)
			}
		case errno != 0 && errno != unix.EINTR:
			b.Fatalf("%d of %d: %v", done, want, errno)
		case errno == 0:
			done += int(n)
		}
	}
}

// BenchmarkStream measures what a TCP connection carries through a director's
// filter and without one: admitted/none is the ratio of the times per MiB.
func BenchmarkStream(b *testing.B) {
	var streams []io.Writer
	for _, name := range []string{"none", "admitted"} {
		client, d := newHost(b, "client"), newHost(b, name)
		client.join(d, "eth1")
		client.run("ip addr add 10.9.0.1/24 dev eth1")
		d.run("ip addr add 10.9.0.100/32 dev lo")
		d.run("ip addr add 10.9.0.2/24 dev eth0")
		mac := d.mac("eth0")
		if name == "admitted" {
			d.filter(b, plain(), partition.FullSet(256))
			mac = sharedMAC.String()
		}
		client.run("ip neigh replace 10.9.0.100 lladdr " + mac + " dev eth1 nud permanent")
		streams = append(streams, newStream(b, client, d))
	}
	block := make([]byte, 1<<20)
	took := make([][]float64, len(streams))
	for b.Loop() {
		for i, s := range streams {
			start := time.Now()
			for range 32 {
				if _, err := s.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			took[i] = append(took[i], time.Since(start).Seconds()/32)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(1/median(took[0]), "MiB/s-none")
	b.ReportMetric(1/median(took[1]), "MiB/s-admitted")
	b.ReportMetric(median(took[1])/median(took[0]), "admitted/none")
}

// newStream connects to a director that reads and forgets.
func newStream(b *testing.B, client, d *host) (c net.Conn) {
	var ln net.Listener
	d.do(func() (err error) {
		ln, err = net.Listen("tcp4", fmt.Sprintf("%v:%d", vip, port))
		return err
	})
	done := make(chan error, 1)
	go func() {
		s, err := ln.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, struct{ io.Reader }{s})
			s.Close()
		}
		done <- err
	}()
	client.do(func() (err error) {
		c, err = net.DialTimeout("tcp4", fmt.Sprintf("%v:%d", vip, port), 5*time.Second)
		return err
	})
	b.Cleanup(func() {
		ln.Close()
		c.Close()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return c
}
