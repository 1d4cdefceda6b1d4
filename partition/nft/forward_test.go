package nft_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/forward"
	"saru/partition/nft"
)

// openForwarding starts directors that hand frames to each other, on a switch
// that does not flood.
func openForwarding(t *testing.T, n int, plan partition.Plan) (*network, []*forward.Forwarder) {
	t.Helper()
	w := &network{t: t, sw: newHost(t, "switch"), client: newHost(t, "client")}
	if err := w.sw.try(nft.Probe); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	}
	w.sw.run("ip link add br0 type bridge")
	w.sw.run("ip link set br0 up")
	w.client.plug(w.sw, "10.9.0.1/24")
	w.sw.run("bridge link set dev to-client flood off")
	var members []partition.Member
	for i := range n {
		members = append(members, partition.Member{Name: fmt.Sprintf("d%d", i+1), Weight: 100})
	}
	owners := partition.Assign(nil, members, plan.Buckets)
	var all []*forward.Forwarder
	for i, m := range members {
		d := &director{host: newHost(t, m.Name), owns: partition.Owned(owners, m.Name), heard: make(map[uint32]int)}
		d.plug(w.sw, fmt.Sprintf("10.9.0.%d/24", i+2))
		w.sw.run("bridge link set dev to-" + d.name + " flood off")
		d.run("ping -c 1 -W 2 10.9.0.1") // the switch learns where it is
		d.own, _ = net.ParseMAC(d.mac("eth0"))
		cfg := config(time.Minute)
		cfg.MAC, cfg.Own, cfg.Plan = d.own, true, plan
		var f *forward.Forwarder
		d.do(func() (err error) {
			if f, err = forward.Open(cfg); err != nil {
				return err
			}
			d.filter, err = openFilter(cfg)
			return err
		})
		t.Cleanup(func() {
			if err := d.try(func() error { return errors.Join(d.filter.Close(), f.Close()) }); err != nil {
				t.Error(err)
			}
			if out := d.run("nft list ruleset") + d.run("tc qdisc show dev eth0"); d.conn == nil && containsAny(out, "saru", "clsact") {
				t.Errorf("%s: left behind: %s", d.name, out)
			}
		})
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); err != nil {
			t.Fatal(err)
		}
		w.directors, all = append(w.directors, d), append(all, f)
	}
	for i := range all {
		w.mustRoute(all, i)
	}
	return w, all
}

// mustRoute tells a director what the others serve.
func (w *network) mustRoute(all []*forward.Forwarder, i int) {
	w.t.Helper()
	var others []forward.Director
	for k, d := range w.directors {
		if k != i {
			others = append(others, forward.Director{MAC: nft.MAC(d.own), Open: d.owns, Rest: d.owns})
		}
	}
	d := w.directors[i]
	if err := all[i].Set(forward.RoutesOf(d.owns, d.owns, others)); err != nil {
		w.t.Fatal(err)
	}
}

// Packets of every kind come to one director at a time, as from a router that
// spreads flows, and each is taken by the one director that has its bucket.
func TestForward(t *testing.T) {
	packets := 6000
	if testing.Short() {
		packets = 1500
	}
	vip4, vip6 := netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("2001:db8:9::100")
	for _, c := range []struct {
		directors int
		plan      partition.Plan
	}{
		{2, partition.Plan{
			VIPs: partition.Hosts(vip4, vip6), Buckets: 256, Default: partition.Division{Sense: partition.SrcPort},
			Services: []partition.Service{
				{VIP: partition.Hosts(vip4)[0], Port: 80, Division: partition.Division{Sense: partition.SrcAddr, Bits4: 24}},
				{VIP: partition.Hosts(vip6)[0], Port: 53, Division: partition.Division{Sense: partition.SrcAddr | partition.SrcPort}},
			},
		}},
		{3, partition.Plan{
			VIPs:    append(partition.Hosts(vip4), netip.MustParsePrefix("10.9.7.0/24"), netip.MustParsePrefix("2001:db8:7::/60")),
			Buckets: 64, Default: partition.Division{Sense: partition.SrcPort, Method: partition.ByBlock},
		}},
	} {
		t.Run(fmt.Sprint(c.directors), func(t *testing.T) {
			c.plan.Seed = rand.Uint32()
			divider, err := partition.NewDivider(c.plan)
			if err != nil {
				t.Fatal(err)
			}
			w, all := openForwarding(t, c.directors, c.plan)
			w.beat(1)
			for _, d := range w.directors {
				d.route(append(c.plan.VIPs, partition.Hosts(vip)...), w.client.mac("eth0"))
				d.run("ip addr add 10.9.0.100/32 dev lo")
				d.witness()
			}
			sent := w.spread(c.plan, packets)
			w.mustTakeOne(divider, sent)
			for i, f := range all {
				if s, err := f.Stats(); err != nil || s.Forwarded < uint64(packets/10) || s.Copied == 0 {
					t.Errorf("%s: %+v, %v", w.directors[i].name, s, err)
				}
			}
		})
	}
}

// spread sends generated packets to one director at a time.
func (w *network) spread(plan partition.Plan, packets int) (sent []generated) {
	w.t.Helper()
	w.t.Logf("seed %#x", plan.Seed)
	out := w.client.wire("eth0")
	g := &generator{Rand: rand.New(rand.NewPCG(uint64(plan.Seed), 0)), vips: plan.VIPs, full: w.behind}
	for number := range packets {
		p := g.packet(number + 1)
		out.to = w.directors[number/16%len(w.directors)].own
		for _, piece := range p.pieces {
			out.send(p.is4(), piece)
		}
		sent = append(sent, p)
	}
	return sent
}

// mustTakeOne asserts that each packet is taken once, where it belongs.
func (w *network) mustTakeOne(divider *partition.Divider, sent []generated) {
	w.t.Helper()
	wrong := 0
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		taken := make([]map[bool]map[int]int, len(w.directors))
		for i, d := range w.directors {
			taken[i] = map[bool]map[int]int{true: d.taken(true), false: d.taken(false)}
		}
		wrong = 0
		last := time.Now().After(end)
		for number, p := range sent {
			packet, err := partition.ParsePacket(p.whole)
			if err != nil {
				w.t.Fatalf("%s: %v: % x", p.kind, err, p.whole)
			}
			decision := divider.Decide(&packet)
			for i, d := range w.directors {
				want := 0
				if decision.Bucket >= 0 && d.owns.Has(decision.Bucket) {
					want = 1
				}
				if got := taken[i][p.is4()][number+1]; got != want {
					if wrong++; last && wrong <= 10 {
						w.t.Errorf("%s took %d copies of a %s, want %d: %+v, % x", d.name, got, p.kind, want, decision, p.whole)
					}
				}
			}
		}
		if wrong == 0 || last {
			break
		}
	}
	if wrong > 0 {
		w.t.Errorf("%d wrong in all", wrong)
	}
}

func containsAny(text string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}
