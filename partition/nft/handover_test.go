package nft_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"
)

// A director that has a bucket in rest only carries on with its connections
// and opens nothing.
func TestClasses(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	d := w.directors[0]
	c, err := w.dial(20001, port, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Fatalf("%q, %v", who, err)
	}
	if err := d.filter.Apply(nft.Desired{Rest: d.owns}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Errorf("the open connection: %q, %v", who, err)
	}
	if got := w.arrived([]uint32{w.send(20001, 64), w.send(20001, 8000)}, 200*time.Millisecond); got[0][0]+got[1][0] != 0 {
		t.Error("UDP accepted")
	}
	if who, err := w.greeting(20002, 300*time.Millisecond); err == nil {
		t.Errorf("a new connection: %q", who)
	}
	if got := w.ping(1); got[0] != 0 {
		t.Error("echo request answered")
	}
	if err := d.filter.Apply(nft.Desired{Open: d.owns}); err == nil {
		t.Error("rest without open was applied")
	}
}

// A flow is a client's, told by its family, protocol and port.
type flow struct {
	v6    bool
	proto byte
	port  uint16
}

func (f flow) String() string {
	return fmt.Sprintf("%s %d, IPv6 %v", partition.ProtoName(f.proto), f.port, f.v6)
}

// packet returns the flow's first packet, or another.
func (f flow) packet(number int, opens bool) []byte {
	payload := numbers(f.port, port)
	switch {
	case f.proto == partition.SCTP:
		payload = append(payload, 0, 0, 0, 0, 0, 0, 0, 0, map[bool]byte{true: 1}[opens], 0, 0, 4)
	case f.proto == partition.TCP:
		payload = append(payload, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, map[bool]byte{true: 0x02, false: 0x10}[opens], 0, 0, 0, 0, 0, 0)
	default:
		payload = append(payload, 0, 8, 0, 0)
	}
	if f.v6 {
		src, dst := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:9::100")
		return append(ipv6Header(uint32(number), src, dst, f.proto, len(payload)), payload...)
	}
	h := ipv4Header(uint16(number), netip.MustParseAddr("192.0.2.7"), vip, f.proto, len(payload))
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

// At a hand-over the giver still has the rest of a bucket, the taker all of
// it. What opens a flow is the taker's, and from then on all of that flow,
// even if the giver had known it; of other flows both take the rest.
func TestSuperseded(t *testing.T) {
	cfg := config(time.Minute)
	cfg.Plan.VIPs = append(cfg.Plan.VIPs, partition.Hosts(netip.MustParseAddr("2001:db8:9::100"))...)
	w := newNetwork(t, 2, cfg)
	all := partition.FullSet(cfg.Plan.Buckets)
	apply := func(d *director, open, rest partition.Set) {
		t.Helper()
		if err := d.filter.Apply(nft.Desired{Open: open, Rest: rest}); err != nil {
			t.Fatal(err)
		}
		if s, err := d.filter.Stats(); err != nil || s.Open != open || s.Rest != rest || !s.Intact {
			t.Fatalf("open %v, rest %v, intact %v, %v", s.Open, s.Rest, s.Intact, err)
		}
	}
	giver, taker := w.directors[0], w.directors[1]
	apply(giver, partition.Set{}, all)
	apply(taker, all, all)
	w.beat(1)
	out := w.client.wire("eth0")
	for _, d := range w.directors {
		d.route(cfg.Plan.VIPs, w.client.mac("eth0"))
		d.witness()
	}
	number := 0
	mustTake := func(when string, f flow, opens, giver, taker bool) {
		t.Helper()
		number++
		out.send(!f.v6, f.packet(number, opens))
		for i, want := range []bool{giver, taker} {
			d := w.directors[i]
			d.await(number)
			if got := d.taken(!f.v6)[number]; (got == 1) != want || got > 1 {
				t.Errorf("%v %s, opening packet %v: %s took %d", f, when, opens, d.name, got)
			}
		}
	}
	var flows []flow
	for _, proto := range []byte{partition.TCP, partition.SCTP} {
		flows = append(flows, flow{false, proto, 40001}, flow{true, proto, 40001})
	}
	for _, f := range flows {
		mustTake("before", f, false, true, true)
		mustTake("anew", f, true, false, true)
		mustTake("after", f, false, false, true)
		other := f
		other.port++
		mustTake("beside", other, false, true, true)
		mustTake("of UDP", flow{f.v6, partition.UDP, f.port}, true, false, true)
	}
	s, err := giver.filter.Stats()
	if n := uint64(len(flows)); err != nil || s.Superseding != n || s.Superseded != n || s.Foreign != 2*n {
		t.Errorf("%+v, %v", s, err)
	}
	if text := giver.run("nft list set inet saru superseded_ip"); !byQueues(giver) && !strings.Contains(text, "timeout 1m expires") {
		t.Errorf("not for a minute: %s", text)
	}
	if got := taker.run("nft list set inet saru superseded_ip"); strings.Contains(got, "elements") {
		t.Errorf("the taker noted its own flows: %s", got)
	}
	// Who has all of a bucket takes all of it, whatever was noted.
	apply(giver, all, all)
	apply(taker, partition.Set{}, partition.Set{})
	for _, f := range flows {
		mustTake("back at the giver", f, false, true, false)
	}
}

// What came for each bucket is counted by class, and is not forgotten when the
// bucket changes hands.
func TestBuckets(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 1, cfg)
	w.beat(1)
	d := w.directors[0]
	d.route(cfg.Plan.VIPs, w.client.mac("eth0"))
	d.witness()
	out := w.client.wire("eth0")
	f := flow{proto: partition.TCP, port: 40001}
	b := cfg.Plan.Bucket(cfg.Plan.Default, netip.AddrPortFrom(vip, f.port), netip.AddrPortFrom(vip, port))
	one := partition.SetOf(b)
	sent := 0
	for _, share := range []nft.Desired{{Open: one, Rest: one}, {Rest: one}, {}, {Open: one, Rest: one}} {
		if err := d.filter.Apply(share); err != nil {
			t.Fatal(err)
		}
		for _, opens := range []bool{true, false, false, false} {
			sent++
			out.send(true, f.packet(sent, opens))
		}
		d.await(sent)
	}
	got, err := d.filter.Buckets()
	if want := (nft.BucketStats{OpenOurs: 2, OpenForeign: 2, RestOurs: 9, RestForeign: 3}); err != nil || got[b] != want {
		t.Errorf("%+v, %v; want %+v", got[b], err, want)
	}
	if s, err := d.filter.Stats(); err != nil || s.Foreign != 5 || s.Superseded != 3 || s.Accepted != 8 || s.Bytes != 16*40 && !byQueues(d) {
		t.Errorf("%+v, %v", s, err)
	}
}
