package nft_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/nft"
)

// Thousands of generated packets of every kind are sent to some directors at
// once. Each is taken by those whom partition.Divider.Decide names, once, and
// by nobody else: of what opens a flow that is exactly one.
func TestPackets(t *testing.T) {
	packets := 20000
	if testing.Short() {
		packets = 3000
	}
	vip4, vip6 := netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("2001:db8:9::100")
	net4, net6 := netip.MustParsePrefix("10.9.7.0/24"), netip.MustParsePrefix("2001:db8:7::/64")
	all := append(partition.Hosts(vip4, vip6), net4, net6)
	host4, host6 := partition.Hosts(vip4)[0], partition.Hosts(vip6)[0]
	by := func(text string, m partition.Method) partition.Division {
		sense, err := partition.ParseSense(text)
		if err != nil {
			t.Fatal(err)
		}
		return partition.Division{Sense: sense, Method: m}
	}
	masked := func(d partition.Division, bits4, bits6 int) partition.Division {
		d.Bits4, d.Bits6 = bits4, bits6
		return d
	}
	for _, c := range []struct {
		directors int
		backstop  bool
		plan      partition.Plan
	}{
		{2, true, partition.Plan{
			VIPs: partition.Hosts(vip4, vip6), Buckets: 256, Default: by("src-port", partition.ByHash),
			Services: []partition.Service{
				{VIP: host4, Port: 80, Division: masked(by("src-addr", partition.ByHash), 24, 0)},
				{VIP: host6, Division: masked(by("src-addr", partition.ByHash), 0, 48)},
			},
		}},
		{3, false, partition.Plan{
			VIPs: all, Buckets: 1024, Default: by("src-addr,dst-addr,src-port,dst-port", partition.ByHash),
			Services: []partition.Service{
				{Proto: partition.TCP, VIP: host4, Port: 80, Division: masked(by("src-addr", partition.ByHash), 24, 48)},
				{Proto: partition.TCP, VIP: host6, Port: 80, Division: masked(by("src-addr", partition.ByHash), 24, 48)},
				{VIP: host4, Port: 21, Division: by("src-addr", partition.ByHash)},
				{VIP: host6, Division: by("dst-port", partition.ByHash)},
				{VIP: net4, Port: 53, Division: by("dst-addr,src-port", partition.ByHash)},
				{VIP: net6, Proto: partition.UDP, Division: masked(by("src-addr,dst-addr", partition.ByHash), 0, 64)},
			},
		}},
		{5, false, partition.Plan{
			VIPs: all, Buckets: 64, Default: by("src-port", partition.ByBlock),
			Services: []partition.Service{
				{VIP: host4, Port: 80, Division: masked(by("src-addr", partition.ByBlock), 16, 0)},
				{VIP: host6, Port: 80, Division: by("src-addr", partition.ByBlock)},
				{VIP: host4, Division: by("dst-port", partition.ByBlock)},
				{VIP: net4, Division: by("dst-addr", partition.ByBlock)},
				{VIP: net6, Division: by("dst-addr", partition.ByHash)},
			},
		}},
	} {
		t.Run(fmt.Sprint(c.directors), func(t *testing.T) {
			cfg := config(time.Minute)
			c.plan.Seed = rand.Uint32()
			cfg.Plan, cfg.Backstop = c.plan, c.backstop
			divider, err := partition.NewDivider(cfg.Plan)
			if err != nil {
				t.Fatal(err)
			}
			w := newNetwork(t, c.directors, cfg)
			w.beMoving()
			if c.backstop {
				w.beSettling()
			}
			w.beat(1)
			for _, d := range w.directors {
				d.route(cfg.Plan.VIPs, w.client.mac("eth0"))
				d.witness()
			}
			w.mustTake(divider, w.flood(cfg, packets))
		})
	}
}

// flood sends generated packets to the shared MAC, and returns them when each
// director has judged all.
func (w *network) flood(cfg nft.Config, packets int) (sent []generated) {
	w.t.Helper()
	w.t.Logf("seed %#x", cfg.Plan.Seed)
	out := w.client.wire("eth0")
	out.to = cfg.MAC
	g := &generator{Rand: rand.New(rand.NewPCG(uint64(cfg.Plan.Seed), 0)), vips: cfg.Plan.VIPs, full: w.behind}
	for len(sent) < packets {
		frames := 0
		for range 32 {
			p := g.packet(len(sent) + 1)
			for _, piece := range p.pieces {
				out.send(p.is4(), piece)
				frames++
			}
			sent = append(sent, p)
		}
		for _, d := range w.directors {
			d.frames += frames
			d.await(d.frames)
		}
	}
	return sent
}

// beMoving gives each director the rest of some buckets of the next.
func (w *network) beMoving() {
	for i, d := range w.directors {
		next := w.directors[(i+1)%len(w.directors)]
		d.rest = d.owns
		for b := range next.owns.All() {
			if b%5 == 0 {
				d.rest.Add(b)
			}
		}
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.rest}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// beSettling makes each director's backstop silence some of its buckets.
func (w *network) beSettling() {
	for _, d := range w.directors {
		for b := range d.rest.All() {
			if b%3 == 0 {
				d.settling.Add(b)
			}
		}
		if err := d.filter.Settle(&d.settling, time.Minute); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *network) mustTake(divider *partition.Divider, sent []generated) {
	w.t.Helper()
	kinds, decided := map[string]int{}, map[string]int{}
	taken := make([]map[bool]map[int]int, len(w.directors))
	for i, d := range w.directors {
		taken[i] = map[bool]map[int]int{true: d.taken(true), false: d.taken(false)}
	}
	wrong, accepted, silenced := 0, make([]uint64, len(w.directors)), make([]uint64, len(w.directors))
	for number, p := range sent {
		packet, err := partition.ParsePacket(p.whole)
		if err != nil {
			w.t.Fatalf("%s: %v: % x", p.kind, err, p.whole)
		}
		decision := divider.Decide(&packet)
		w.mustExplain(divider, &packet, decision)
		kinds[p.kind]++
		decided[decision.Class.String()]++
		for i, d := range w.directors {
			want := 0
			if decision.Class == partition.Open && d.owns.Has(decision.Bucket) ||
				decision.Class == partition.Rest && d.rest.Has(decision.Bucket) {
				want = 1
				accepted[i]++
			}
			if want == 1 && decision.Class == partition.Rest && d.settling.Has(decision.Bucket) {
				want = 0
				silenced[i]++
			}
			if got := taken[i][p.is4()][number+1]; got != want {
				if wrong++; wrong <= 10 {
					w.t.Errorf("%s took %d copies of a %s, want %d: %+v, %+v, % x", d.name, got, p.kind, want, decision, packet, p.whole)
				}
			}
		}
	}
	if wrong > 10 {
		w.t.Errorf("%d wrong in all", wrong)
	}
	w.t.Log(kinds, decided)
	for i, d := range w.directors {
		s, err := d.filter.Stats()
		if err != nil || s.Accepted != accepted[i] || s.Silenced != silenced[i] || s.Lapsed != 0 || s.Pieces != 0 || !s.Intact {
			w.t.Errorf("%s should have accepted %d and silenced %d: %+v, %v", d.name, accepted[i], silenced[i], s, err)
		}
	}
}

// mustExplain asserts that who asks about the packet's flow is told of the
// bucket whose director takes it.
func (w *network) mustExplain(divider *partition.Divider, packet *partition.Packet, decision partition.Decision) {
	w.t.Helper()
	if decision.Class != partition.Open && decision.Class != partition.Rest {
		return
	}
	words := strings.Fields(packet.Flow().String())
	flow, err := partition.ParseFlow(words[0], words[1], words[2])
	if err != nil {
		w.t.Fatal(err)
	}
	if e, err := divider.Explain(flow); err != nil || e.Bucket != decision.Bucket {
		w.t.Errorf("%v: explained as bucket %d (%v), decided %+v", flow, e.Bucket, err, decision)
	}
}

// A wire is a socket that sends frames as they are.
type wire struct {
	t       testing.TB
	fd      int
	ifindex int
	own     net.HardwareAddr
	to      net.HardwareAddr
}

func (h *host) wire(device string) *wire {
	h.t.Helper()
	w := &wire{t: h.t, to: sharedMAC}
	h.do(func() (err error) {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		w.ifindex, w.own = ifi.Index, ifi.HardwareAddr
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	h.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// send sends an IP packet to the MAC.
func (w *wire) send(is4 bool, packet []byte) { w.sendTo(w.to, is4, packet) }

func (w *wire) sendTo(mac net.HardwareAddr, is4 bool, packet []byte) {
	w.t.Helper()
	frame := append(append([]byte{}, mac...), w.own...)
	ether := uint16(unix.ETH_P_IPV6)
	if is4 {
		ether = unix.ETH_P_IP
	}
	frame = append(binary.BigEndian.AppendUint16(frame, ether), packet...)
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.ifindex}); err != nil {
		w.t.Fatal(err)
	}
}

// route makes all that the VIPs' packets say local, and sends what the stack
// answers to the client.
func (d *director) route(vips []netip.Prefix, client string) {
	d.t.Helper()
	d.run("ip -6 addr add 2001:db8::2/64 dev eth0 nodad")
	d.run("ip route add default via 10.9.0.1 dev eth0")
	d.run("ip -6 route add default via 2001:db8::1 dev eth0")
	d.run("ip neigh replace 10.9.0.1 lladdr " + client + " dev eth0 nud permanent")
	d.run("ip neigh replace 2001:db8::1 lladdr " + client + " dev eth0 nud permanent")
	for _, v := range vips {
		if v.Addr() != vip {
			d.run("ip route replace local " + v.String() + " dev lo")
		}
	}
}

// witness makes a table that counts the frames to the shared MAC as they come,
// and behind all chains of the filter notes every packet by its number.
func (d *director) witness() {
	d.t.Helper()
	d.witnessAt("witness", nftables.ChainHookInput, 120, "eth0", d.takes())
}

func (d *director) witnessAt(table string, hook *nftables.ChainHook, last nftables.ChainPriority, device string, mac net.HardwareAddr) {
	d.t.Helper()
	d.do(func() error {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		d.t.Cleanup(func() { c.CloseLasting() })
		d.conn = c
		d.noted = c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
		early := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyNetdev})
		first := nftables.ChainPriority(-100)
		ingress := c.AddChain(&nftables.Chain{
			Name: "ingress", Table: early, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: &first, Device: device,
		})
		d.arrivals = &nftables.NamedObj{Table: early, Name: "frames", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
		c.AddObj(d.arrivals)
		c.AddRule(&nftables.Rule{Table: early, Chain: ingress, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
			&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: "frames"},
		}})
		input := c.AddChain(&nftables.Chain{
			Name: "input", Table: d.noted, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &last,
		})
		for _, is4 := range []bool{true, false} {
			if err := c.AddSet(d.numbers(is4), nil); err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{Table: d.noted, Chain: input, Exprs: d.note(is4,
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
			)})
		}
		return c.Flush()
	})
}

// alsoAtInput notes what passes the input hook, too.
func (d *director) alsoAtInput(mac net.HardwareAddr) {
	d.t.Helper()
	d.do(func() error {
		last := nftables.ChainPriority(120)
		local := d.conn.AddChain(&nftables.Chain{
			Name: "local", Table: d.noted, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: &last,
		})
		d.conn.AddRule(&nftables.Rule{Table: d.noted, Chain: local, Exprs: d.note(true,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
		)})
		return d.conn.Flush()
	})
}

// note is a rule that notes the number of a packet of a family: the IPv4
// identification, or the IPv6 flow label.
func (d *director) note(is4 bool, match ...expr.Any) []expr.Any {
	offset, proto, set := uint32(0), byte(unix.NFPROTO_IPV6), d.numbers(is4)
	if is4 {
		offset, proto = 2, unix.NFPROTO_IPV4
	}
	all := append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}, match...)
	return append(all,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

// takes returns the MAC whose frames the director takes.
func (d *director) takes() net.HardwareAddr {
	if d.own != nil {
		return d.own
	}
	if d.shared != nil {
		return d.shared
	}
	return sharedMAC
}

func (d *director) numbers(is4 bool) *nftables.Set {
	return &nftables.Set{
		Table: d.noted, Name: fmt.Sprint("numbers-", is4), KeyType: nftables.TypeInteger, KeyByteOrder: binaryutil.BigEndian,
		Dynamic: true, Counter: true, Size: 1 << 17,
	}
}

// await waits until so many frames have come.
func (d *director) await(frames int) {
	d.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		came := d.came()
		if came >= frames {
			d.awaitVerdicts()
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("%s: %d of %d frames came", d.name, came, frames)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// came returns how many frames to the shared MAC came.
func (d *director) came() int {
	d.t.Helper()
	obj, err := d.conn.GetObject(d.arrivals)
	if err != nil {
		d.t.Fatal(err)
	}
	return int(obj.(*nftables.NamedObj).Obj.(*expr.Counter).Packets)
}

// taken returns how often each packet passed input, by its number.
func (d *director) taken(is4 bool) map[int]int {
	d.t.Helper()
	found, err := d.conn.GetSetElements(d.numbers(is4))
	if err != nil {
		d.t.Fatal(err)
	}
	taken := make(map[int]int)
	for _, e := range found {
		number := int(binary.BigEndian.Uint32(e.Key) & 0xfffff)
		if is4 {
			number = int(binary.BigEndian.Uint16(e.Key[2:]))
		}
		taken[number] += int(e.Counter.Packets)
	}
	return taken
}
