package nft_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"saru/partition"
	"saru/partition/nft"
)

// The virtual addresses of the tests with IPVS, the ports that it serves there,
// and the real server's addresses.
var (
	served4, served6 = vip, vip6
	servedPorts      = []uint16{80, 53, 21}
	real4, real6     = netip.MustParseAddr("10.9.0.200"), netip.MustParseAddr("2001:db8::200")
)

// behind puts IPVS behind the filter, with a real server that is reached by
// direct routing: a packet that it takes leaves as it came, and is noted then,
// where the witness would not see it.
func (d *director) behind() {
	d.t.Helper()
	if err := d.try(func() error { return exec.Command("ipvsadm", "-L").Run() }); err != nil {
		d.t.Skip("no IPVS in this kernel, or no ipvsadm")
	}
	var services strings.Builder
	for _, c := range []struct {
		vip, real string
		addr      netip.Addr
	}{{served4.String(), real4.String(), real4}, {"[" + served6.String() + "]", "[" + real6.String() + "]", real6}} {
		d.run(fmt.Sprintf("ip neigh replace %v lladdr 02:00:00:00:00:99 dev eth0 nud permanent", c.addr))
		for _, port := range servedPorts {
			for _, proto := range []string{"-t", "-u", "--sctp-service"} {
				fmt.Fprintf(&services, "-A %s %s:%d -s rr\n", proto, c.vip, port)
				fmt.Fprintf(&services, "-a %s %s:%d -r %s:%d -g\n", proto, c.vip, port, c.real, port)
			}
		}
	}
	d.do(func() error {
		restore := exec.Command("ipvsadm", "-R")
		restore.Stdin = strings.NewReader(services.String())
		if out, err := restore.CombinedOutput(); err != nil {
			return fmt.Errorf("ipvsadm -R: %w: %s", err, out)
		}
		return nil
	})
	d.do(func() error {
		first := nftables.ChainPriority(0)
		output := d.conn.AddChain(&nftables.Chain{
			Name: "output", Table: d.noted, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &first,
		})
		for _, a := range []netip.Addr{served4, served6} {
			offset := uint32(24)
			if a.Is4() {
				offset = 16
			}
			b := a.AsSlice()
			// Nothing that the host sends by itself goes to a virtual address.
			toVIP := []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(b))},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b},
			}
			d.conn.AddRule(&nftables.Rule{Table: d.noted, Chain: output, Exprs: d.note(a.Is4(), toVIP...)})
			// And nothing leaves: the copies that a bridge makes share their bytes, and
			// who cuts a datagram into fragments again writes into the others' (ip_do_fragment).
			d.conn.AddRule(&nftables.Rule{Table: d.noted, Chain: output, Exprs: append(toVIP, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		return d.conn.Flush()
	})
}

// scheduled returns how many packets IPVS has made or found a connection for.
func (d *director) scheduled() (n int) {
	d.t.Helper()
	_, err := fmt.Sscanf(d.run("awk END{print(NR-1)} /proc/net/ip_vs_conn"), "%d", &n)
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

func servedPlan() partition.Plan {
	host4, host6 := partition.Hosts(served4)[0], partition.Hosts(served6)[0]
	return partition.Plan{
		VIPs: partition.Hosts(served4, served6), Buckets: 256, Seed: rand.Uint32(),
		Default: partition.Division{Sense: partition.SrcPort},
		Services: []partition.Service{
			{Proto: partition.TCP, VIP: host4, Port: 80, Division: partition.Division{Sense: partition.SrcAddr, Bits4: 24}},
			{VIP: host4, Port: 53, Division: partition.Division{Sense: partition.SrcAddr | partition.SrcPort | partition.DstPort}},
			{Proto: partition.UDP, VIP: host6, Port: 53, Division: partition.Division{Sense: partition.SrcAddr, Bits6: 48}},
		},
	}
}

// What is admitted reaches IPVS, or the host where IPVS has no service for it,
// at the one director that explain names, in both modes.
func TestPacketsThroughIPVS(t *testing.T) {
	packets := 6000
	if testing.Short() {
		packets = 1000
	}
	prepare := func(t *testing.T, w *network) {
		w.behind = true // IPVS drops what ends before the ports
		w.beat(1)
		for _, d := range w.directors {
			d.route(append(partition.Hosts(served4, served6), partition.Hosts(vip)...), w.client.mac("eth0"))
			d.witness()
			d.behind()
		}
	}
	mustSchedule := func(t *testing.T, w *network) {
		for _, d := range w.directors {
			n := d.scheduled()
			t.Logf("%s: %d connections in IPVS", d.name, n)
			if n < packets/20/len(w.directors) {
				t.Errorf("%s: IPVS has only %d connections", d.name, n)
			}
		}
	}
	for _, directors := range []int{2, 3, 5} {
		t.Run(fmt.Sprint("flood ", directors), func(t *testing.T) {
			cfg := config(time.Minute)
			cfg.Plan, cfg.Backstop = servedPlan(), true
			divider, err := partition.NewDivider(cfg.Plan)
			if err != nil {
				t.Fatal(err)
			}
			w := newNetwork(t, directors, cfg)
			w.beMoving()
			prepare(t, w)
			w.mustTake(divider, w.flood(cfg, packets))
			mustSchedule(t, w)
		})
	}
	t.Run("forward", func(t *testing.T) {
		plan := servedPlan()
		divider, err := partition.NewDivider(plan)
		if err != nil {
			t.Fatal(err)
		}
		w, _ := openForwarding(t, 3, plan)
		for _, d := range w.directors {
			d.run("ip addr add 10.9.0.100/32 dev lo")
		}
		prepare(t, w)
		w.mustTakeOne(divider, w.spread(plan, packets))
		mustSchedule(t, w)
	})
}

// Two shares on one LAN: what goes to an address by its own share's MAC has the
// acceptor of that share, by the other's MAC none.
func TestPacketsOfTwoShares(t *testing.T) {
	packets := 6000
	if testing.Short() {
		packets = 1000
	}
	first := config(time.Minute)
	first.Plan.Seed = rand.Uint32()
	second := config(time.Minute)
	second.Name, second.ShareID, second.MAC = "saru-7", 7, net.HardwareAddr{2, 0, 0x5e, 0, 1, 7}
	second.Plan = partition.Plan{
		VIPs: partition.Hosts(netip.MustParseAddr("10.9.0.107"), vip6), Buckets: 64, Seed: rand.Uint32(),
		Default: partition.Division{Sense: partition.SrcAddr | partition.SrcPort},
	}
	w := newNetwork(t, 3, first)
	other := &network{t: t, sw: w.sw, client: w.client}
	var members []partition.Member
	for i, d := range w.directors {
		members = append(members, partition.Member{Name: d.name, Weight: 100 + 50*i})
	}
	owners := partition.Assign(nil, members, second.Plan.Buckets)
	for _, d := range w.directors {
		o := &director{host: d.host, owns: partition.Owned(owners, d.name), heard: map[uint32]int{}, shared: second.MAC}
		o.open(second, false)
		other.directors = append(other.directors, o)
		d.route(append(first.Plan.VIPs, second.Plan.VIPs...), w.client.mac("eth0"))
		d.witness()
		o.witnessAt("witness-7", nftables.ChainHookInput, 121, "eth0", second.MAC)
	}
	for _, n := range []*network{w, other} {
		for _, d := range n.directors {
			d.rest = d.owns
		}
		n.beat(1)
	}
	for _, c := range []struct {
		*network
		cfg nft.Config
	}{{w, first}, {other, second}} {
		divider, err := partition.NewDivider(c.cfg.Plan)
		if err != nil {
			t.Fatal(err)
		}
		c.mustTake(divider, c.flood(c.cfg, packets))
	}
	// The addresses of one by the MAC of the other.
	crossed := second
	crossed.MAC = first.MAC
	before := make([]uint64, len(w.directors))
	for i, d := range w.directors {
		before[i] = accepted(d)
	}
	w.flood(crossed, 64)
	for i, d := range w.directors {
		if got := accepted(d); got != before[i] {
			t.Errorf("%s accepted %d packets for addresses of another share", d.name, got-before[i])
		}
	}
}

func accepted(d *director) uint64 {
	d.t.Helper()
	s, err := d.filter.Stats()
	if err != nil {
		d.t.Fatal(err)
	}
	return s.Accepted
}
