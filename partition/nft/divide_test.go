package nft_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"
)

func ports(n int) []uint16 {
	ps := make([]uint16, n)
	for i := range ps {
		ps[i] = uint16(20000 + 37*i)
	}
	return ps
}

// expect returns for a source port which director must accept.
func (w *network) expect(cfg nft.Config, p uint16) int {
	b := cfg.Plan.Bucket(cfg.Plan.Default, netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), p), netip.AddrPortFrom(vip, port))
	for i, d := range w.directors {
		if d.owns.Has(b) {
			return i
		}
	}
	return -1
}

func (w *network) mustDivide(cfg nft.Config, ps []uint16, numbers []uint32) {
	w.t.Helper()
	wrong := 0
	for i, got := range w.arrived(numbers, 5*time.Second) {
		for k, copies := range got {
			want := 0
			if k == w.expect(cfg, ps[i]) {
				want = 1
			}
			if copies != want {
				if wrong++; wrong < 5 {
					w.t.Errorf("source port %d: %s got %d copies, want %d", ps[i], w.directors[k].name, copies, want)
				}
			}
		}
	}
	if wrong > 0 {
		w.t.Errorf("%d of %d datagrams fell to the wrong director", wrong, len(ps))
		for _, d := range w.directors {
			s, err := d.filter.Stats()
			w.t.Logf("%s: %+v, %v", d.name, s, err)
		}
	}
}

// Every datagram and every connection has exactly the acceptor that Go
// predicts, and the switch never learns where the shared MAC is.
func TestDivide(t *testing.T) {
	for _, sense := range []partition.Sense{partition.SrcPort, partition.SrcAddr | partition.SrcPort, partition.SrcAddr | partition.DstAddr | partition.SrcPort | partition.DstPort} {
		t.Run(sense.String(), func(t *testing.T) {
			cfg := config(time.Minute)
			cfg.Plan.Default.Sense = sense
			w := newNetwork(t, 3, cfg)
			w.beat(1)
			if _, err := w.greeting(20000, 5*time.Second); err != nil {
				t.Fatalf("with the ARP responder: %v", err)
			}
			ps := ports(600)
			w.mustDivide(cfg, ps, w.sendMany(ps, 64))
			for _, p := range ps[1:60] {
				who, err := w.greeting(p, 5*time.Second)
				if want := w.directors[w.expect(cfg, p)].name; who != want || err != nil {
					t.Errorf("connection from port %d: %q, %v; want %q", p, who, err, want)
				}
			}
			if fdb := w.sw.run("bridge fdb show br br0"); strings.Contains(fdb, sharedMAC.String()) {
				t.Errorf("the switch learned the shared MAC:\n%s", fdb)
			}
			total := uint64(0)
			for _, d := range w.directors {
				s, err := d.filter.Stats()
				if err != nil {
					t.Fatal(err)
				}
				if !s.Intact || s.Foreign < 600/4 || s.Accepted == 0 || s.Own != 0 || s.Open != d.owns || s.LeaseLeft <= 0 {
					t.Errorf("%s: %+v", d.name, s)
				}
				total += s.Accepted
			}
			if total < 660 {
				t.Errorf("%d packets accepted in all", total)
			}
		})
	}
}

// A datagram in fragments has one acceptor too, the one of its ports.
func TestFragments(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 3, cfg)
	w.resolve()
	w.beat(1)
	ps := ports(60)
	w.mustDivide(cfg, ps, w.sendMany(ps, 8000))
	for _, d := range w.directors {
		if s, err := d.filter.Stats(); err != nil || s.Fragments < 60 {
			t.Errorf("%s: %d fragments, %v", d.name, s.Fragments, err)
		}
	}
}

// Of a flood of fragments only so many are let in.
func TestFragmentFlood(t *testing.T) {
	cfg := config(time.Minute)
	cfg.Fragments = 1
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	w.sendMany(ports(20), 8000)
	s, err := w.directors[0].filter.Stats()
	for end := time.Now().Add(5 * time.Second); err == nil && s.Fragments+s.Flood < 120 && time.Now().Before(end); {
		s, err = w.directors[0].filter.Stats()
	}
	if err != nil || s.Flood < 60 || s.Fragments == 0 || s.Fragments+s.Flood != 120 {
		t.Errorf("%+v, %v", s, err)
	}
	ps := ports(8)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
}

// An echo request has one answer, not one from each director.
func TestPing(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 3, cfg)
	w.resolve()
	w.beat(1)
	b := cfg.Plan.AddrBucket(netip.MustParseAddr("10.9.0.1"))
	for seq, answers := range w.ping(3) {
		if answers != 1 {
			t.Errorf("request %d: %d answers", seq, answers)
		}
	}
	for _, d := range w.directors {
		s, err := d.filter.Stats()
		if ours := d.owns.Has(b); err != nil || ours != (s.Accepted >= 3) {
			t.Errorf("%s accepted %d, bucket %d is its own: %v; %v", d.name, s.Accepted, b, ours, err)
		}
	}
}
