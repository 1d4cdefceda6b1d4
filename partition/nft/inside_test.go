package nft_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"saru/partition"
	"saru/partition/nft"
)

var (
	insideMAC = net.HardwareAddr{0x02, 0x00, 0x5e, 0x00, 0x01, 0xca}
	gateway   = netip.MustParseAddr("192.168.6.1")
	servers   = netip.MustParsePrefix("192.168.6.0/24")
)

// insideConfig is LVS-NAT: real servers answer TCP from port 8080, UDP from 53.
func insideConfig() nft.Config {
	cfg := config(time.Minute)
	port80 := partition.Division{Sense: partition.SrcPort}
	masked := partition.Division{Sense: partition.SrcAddr, Bits4: 24}
	host := partition.Hosts(vip)[0]
	cfg.Plan.VIPs = partition.Hosts(vip, gateway)
	cfg.Plan.Services = []partition.Service{
		{VIP: host, Division: partition.Outward},
		{Proto: partition.TCP, VIP: host, Port: 80, Division: port80},
		{Proto: partition.UDP, VIP: host, Port: 53, Division: masked},
	}
	cfg.Plan.Inside = &partition.Inside{
		Networks: []netip.Prefix{servers},
		Replies:  []partition.Reply{{Proto: partition.TCP, Port: 8080, Division: port80}, {Proto: partition.UDP, Port: 53, Division: masked}},
	}
	cfg.Inside = &nft.Inside{Interface: "eth1", MAC: insideMAC, From: vip}
	return cfg
}

// joinBridge joins a host to a bridge of the switch.
func (h *host) joinBridge(sw *host, bridge, device, addr string) {
	h.t.Helper()
	sw.do(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		port := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: device, PeerNamespace: netlink.NsFd(h.handle)}
		port.Name = bridge + "-" + h.name
		if err := netlink.LinkAdd(port); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(port, br), netlink.LinkSetUp(port))
	})
	h.run("ip addr add " + addr + " dev " + device)
	h.run("ip link set " + device + " up")
}

// fromServer makes a packet of a real server, numbered by its identification.
func (g *generator) fromServer(number int) generated {
	src := netip.AddrFrom4([4]byte{192, 168, 6, byte(21 + g.IntN(5))})
	dst := g.client(true)
	high := uint16(1024 + g.IntN(60000))
	var kind string
	var proto byte
	var b []byte
	switch g.IntN(9) {
	case 8:
		// It calls a virtual service as a client does, by way of its gateway.
		dst, kind = vip, "call of a virtual service"
		proto, b = partition.TCP, g.tcp(high, pick[uint16](g, 80, 443), pick(g, "SYN", "ACK"))
	case 0, 1:
		name := pick(g, "SYN-ACK", "ACK", "FIN", "RST")
		kind, proto, b = "reply "+name, partition.TCP, g.tcp(8080, high, name)
	case 2:
		kind, proto, b = "datagram in reply", partition.UDP, g.udp(53, high)
	case 3:
		name := pick(g, "SYN", "ACK")
		kind, proto, b = "own "+name, partition.TCP, g.tcp(high, 443, name)
	case 4:
		kind, proto, b = "own datagram", partition.UDP, g.udp(high, 123)
	case 5:
		kind, proto, b = "ping", 1, append([]byte{8, 0, 0, 0}, g.bytes(40)...)
	case 6:
		quoted := pick[byte](g, partition.TCP, partition.UDP)
		port := pick[uint16](g, 8080, 53, 9999)
		inner := g.tcp(high, port, "ACK")
		kind, proto, b = "ICMP error", 1, slices.Concat([]byte{3, 4, 0, 0, 0, 0, 5, 0x78}, ipv4Header(7, dst, src, quoted, len(inner)), inner)
	default:
		kind, proto, b = "GRE", 47, g.bytes(48)
	}
	p := g.ipv4(uint16(number), src, dst, proto, b)
	p.kind = kind
	if len(p.pieces) > 1 {
		p.kind += " in fragments"
	}
	return p
}

// What real servers send has exactly the acceptor that the plan names; what
// nobody translated never leaves; the servers' own flows leave with the virtual
// address and their own port.
func TestInside(t *testing.T) {
	cfg := insideConfig()
	cfg.Plan.Seed = rand.Uint32()
	t.Logf("seed %#x", cfg.Plan.Seed)
	divider, err := partition.NewDivider(cfg.Plan)
	if err != nil {
		t.Fatal(err)
	}
	w := &network{t: t, sw: newHost(t, "switch"), client: newHost(t, "client")}
	if err := w.sw.try(func() error { return errors.Join(nft.Probe(), nft.ProbeInside()) }); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	for _, bridge := range []string{"br0", "br1"} {
		w.sw.run("ip link add " + bridge + " type bridge")
		w.sw.run("ip link set " + bridge + " up")
	}
	w.client.plug(w.sw, "10.9.0.1/24")
	server := newHost(t, "server")
	server.joinBridge(w.sw, "br1", "eth0", "192.168.6.200/24")
	var members []partition.Member
	for i := range 3 {
		members = append(members, partition.Member{Name: fmt.Sprintf("d%d", i+1), Weight: 100})
	}
	owners := partition.Assign(nil, members, cfg.Plan.Buckets)
	for i, m := range members {
		d := &director{host: newHost(t, m.Name), owns: partition.Owned(owners, m.Name), heard: make(map[uint32]int)}
		d.plug(w.sw, fmt.Sprintf("10.9.0.%d/24", i+2))
		d.joinBridge(w.sw, "br1", "eth1", fmt.Sprintf("192.168.6.%d/24", i+2))
		d.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0")
		d.run("ip route add default via 10.9.0.1 dev eth0")
		d.run("ip neigh replace 10.9.0.1 lladdr " + w.client.mac("eth0") + " dev eth0 nud permanent")
		d.open(cfg, i == 0)
		d.run("sysctl -qw net.netfilter.nf_conntrack_checksum=0") // the test's packets have none
		// Behind the judgement. It lets nothing leave: the copies that a bridge
		// makes share their bytes, and a director that cut a datagram into
		// fragments again would write into the others' (ip_do_fragment).
		d.witnessAt("witness", nftables.ChainHookForward, 50, "eth1", insideMAC)
		d.alsoAtInput(insideMAC)
		d.run("nft add chain inet witness last { type filter hook forward priority 51 ; policy drop ; }")
		w.directors = append(w.directors, d)
	}
	w.beMoving()
	w.beat(1)
	w.client.run("nft add table netdev seen")
	w.client.run(`nft add chain netdev seen in { type filter hook ingress device "eth0" priority 0 ; }`)
	w.client.run("nft add rule netdev seen in ip saddr 192.168.6.0/24 counter comment \"leaked\"")
	w.client.run("nft add rule netdev seen in ip saddr 10.9.0.100 tcp sport 51234 tcp flags syn counter comment \"masqueraded\"")

	out := server.wire("eth0")
	g := &generator{Rand: rand.New(rand.NewPCG(uint64(cfg.Plan.Seed), 1))}
	// The links come up in their own time.
	stranger := g.ipv4(1, netip.MustParseAddr("192.168.7.1"), gateway.Next(), 255, g.bytes(40)).whole
	for _, d := range w.directors {
		for d.came() == 0 {
			out.sendTo(insideMAC, true, stranger)
			time.Sleep(time.Millisecond)
		}
	}
	out.sendTo(insideMAC, true, stranger)
	for _, d := range w.directors {
		d.await(1)
	}
	time.Sleep(50 * time.Millisecond)
	for _, d := range w.directors {
		d.frames = d.came()
	}
	var sent []generated
	for len(sent) < 1500 {
		frames := 0
		for range 16 {
			p := g.fromServer(len(sent) + 1)
			for _, piece := range p.pieces {
				out.sendTo(insideMAC, true, piece)
				frames++
			}
			sent = append(sent, p)
		}
		for _, d := range w.directors {
			d.frames += frames
			d.await(d.frames)
		}
	}
	wrong := 0
	kinds := map[string]int{}
	taken := make([]map[int]int, len(w.directors))
	for i, d := range w.directors {
		taken[i] = d.taken(true)
	}
	for number, p := range sent {
		packet, err := partition.ParsePacket(p.whole)
		if err != nil {
			t.Fatal(err)
		}
		decision := divider.Decide(&packet)
		kinds[p.kind]++
		for i, d := range w.directors {
			want := 0
			if decision.Class == partition.Open && d.owns.Has(decision.Bucket) || decision.Class == partition.Rest && d.rest.Has(decision.Bucket) {
				want = 1
			}
			if got := taken[i][number+1]; got != want {
				if wrong++; wrong <= 10 {
					t.Errorf("%s took %d copies of a %s, want %d: %+v, %+v", d.name, got, p.kind, want, decision, packet)
				}
			}
		}
	}
	if wrong > 10 {
		t.Errorf("%d wrong in all", wrong)
	}
	t.Log(kinds)
	for _, d := range w.directors {
		if s, err := d.filter.Stats(); err != nil || s.Pieces != 0 || s.Lapsed != 0 || !s.Intact {
			t.Errorf("%s: %+v, %v", d.name, s, err)
		}
		d.run("nft delete table inet witness")
	}
	w.mustNotLeak(g, out)
}

// mustNotLeak sends replies that IPVS does not know, and one connection of a
// server's own.
func (w *network) mustNotLeak(g *generator, out *wire) {
	w.t.Helper()
	server, remote := netip.MustParseAddr("192.168.6.21"), netip.MustParseAddr("198.51.100.9")
	const replies = 50
	for i := range uint16(replies) {
		out.sendTo(insideMAC, true, ipv4(i, server, remote, g.tcp(8080, 40000+i, "SYN-ACK")))
		out.sendTo(insideMAC, true, ipv4(i, server, remote, g.tcp(40000+i, 443, "SYN-ACK"))) // of nothing that is known
	}
	out.sendTo(insideMAC, true, ipv4(999, server, remote, g.tcp(51234, 443, "SYN")))
	w.eventually(func() string {
		seen := w.client.run("nft list chain netdev seen in")
		if !strings.Contains(seen, "counter packets 0 bytes 0 comment \"leaked\"") {
			w.t.Fatalf("a real server's address left:\n%s", seen)
		}
		if !strings.Contains(seen, "counter packets 1 bytes 40 comment \"masqueraded\"") {
			return seen
		}
		return ""
	})
	w.eventually(func() string {
		leaks := uint64(0)
		for _, d := range w.directors {
			s, err := d.filter.Stats()
			if err != nil {
				w.t.Fatal(err)
			}
			leaks += s.Leaks
		}
		// A bucket that moves has two that take its rest.
		if leaks < 2*replies {
			return fmt.Sprintf("%d dropped, want %d or more", leaks, 2*replies)
		}
		return ""
	})
}

// eventually waits until f has nothing to complain of.
func (w *network) eventually(f func() (complaint string)) {
	w.t.Helper()
	complaint := f()
	for end := time.Now().Add(5 * time.Second); complaint != ""; complaint = f() {
		if time.Now().After(end) {
			w.t.Fatal(complaint)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ipv4 makes an unfragmented TCP packet without data.
func ipv4(id uint16, src, dst netip.Addr, tcp []byte) []byte {
	const header = 20
	h := ipv4Header(id, src, dst, partition.TCP, header)
	c := checksum(h)
	h[10], h[11] = byte(c>>8), byte(c)
	return append(h, tcp[:header]...)
}
