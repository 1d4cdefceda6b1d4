package nft_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"

	"golang.org/x/sys/unix"
)

// Either half of the table alone admits nothing.
func TestHalfTable(t *testing.T) {
	for _, half := range []string{"inet", "netdev"} {
		t.Run(half, func(t *testing.T) {
			w := newNetwork(t, 1, config(time.Minute))
			w.resolve()
			w.beat(1)
			d := w.directors[0]
			if got := w.arrived([]uint32{w.send(20001, 64)}, 5*time.Second); got[0][0] != 1 {
				t.Fatal("not accepted with both")
			}
			d.run("nft delete table " + half + " saru")
			if got := w.arrived([]uint32{w.send(20001, 64), w.send(20001, 8000)}, 200*time.Millisecond); got[0][0]+got[1][0] != 0 {
				t.Error("accepted")
			}
			if ok, err := d.filter.Verify(); ok || err != nil {
				t.Errorf("verify: %v, %v", ok, err)
			}
		})
	}
}

// Where something else makes the frames this host's, and our ingress chain is
// gone, the second judgement still divides them.
func TestDefaultDeny(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	for _, d := range w.directors {
		d.run("nft delete chain inet saru ingress")
		d.run("nft add table netdev other")
		d.run(`nft add chain netdev other host { type filter hook ingress device "eth0" priority 100 ; }`)
		d.run("nft add rule netdev other host meta pkttype set host")
	}
	ps := ports(100)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
	for _, d := range w.directors {
		if err := d.filter.Apply(nft.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, got := range w.arrived(w.sendMany(ps, 64), 200*time.Millisecond) {
		if got[0]+got[1] != 0 {
			t.Errorf("port %d: accepted by nobody's rule", ps[i])
		}
	}
}

// A flush of the ruleset closes: nothing is accepted, Verify and Arm say so,
// and Reset gives a closed table that serves again when told.
func TestFlushRuleset(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	ps := ports(40)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
	for _, d := range w.directors {
		if ok, err := d.filter.Verify(); !ok || err != nil {
			t.Fatalf("%s before: %v, %v", d.name, ok, err)
		}
		d.run("nft flush ruleset")
	}
	for _, size := range []int{64, 8000} {
		for i, got := range w.arrived(w.sendMany(ps, size), 300*time.Millisecond) {
			for k, copies := range got {
				if copies != 0 {
					t.Errorf("port %d, %d bytes: %s accepts without a table", ps[i], size, w.directors[k].name)
				}
			}
		}
	}
	for _, d := range w.directors {
		if ok, err := d.filter.Verify(); ok || err != nil {
			t.Errorf("%s after: %v, %v", d.name, ok, err)
		}
		if err := d.filter.Arm(2); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: arm: %v", d.name, err)
		}
		if err := d.filter.Confirm(2); !errors.Is(err, nft.ErrNotArmed) {
			t.Errorf("%s: confirm: %v", d.name, err)
		}
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: apply: %v", d.name, err)
		}
		if _, err := d.filter.Stats(); !errors.Is(err, nft.ErrGone) {
			t.Errorf("%s: stats: %v", d.name, err)
		}
		if err := d.filter.Reset(); err != nil {
			t.Fatal(err)
		}
		d.beat(3)
	}
	for i, got := range w.arrived(w.sendMany(ps, 64), 300*time.Millisecond) {
		if got[0]+got[1] != 0 {
			t.Errorf("port %d: accepted after Reset, before Apply", ps[i])
		}
	}
	for _, d := range w.directors {
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); err != nil {
			t.Fatal(err)
		}
		d.beat(4)
	}
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
}

// Apply gives the wanted buckets whatever somebody else made of the sets.
func TestApplyRepairs(t *testing.T) {
	w := newNetwork(t, 1, config(time.Second))
	d := w.directors[0]
	for _, edit := range []string{
		"flush map inet saru open", "delete element inet saru rest { 7 }",
		"delete element inet saru open { 5 } ; add element inet saru open { 5 : continue }",
	} {
		if err := d.filter.Apply(nft.Desired{Open: partition.SetOf(7), Rest: partition.SetOf(7, 8)}); err != nil {
			t.Fatal(err)
		}
		d.run("nft " + edit)
		want := nft.Desired{Open: partition.SetOf(1, 9), Rest: partition.SetOf(1, 8, 9)}
		if err := d.filter.Apply(want); err != nil {
			t.Fatalf("after %s: %v", edit, err)
		}
		if s, err := d.filter.Stats(); err != nil || s.Open != want.Open || s.Rest != want.Rest || !s.Intact {
			t.Errorf("after %s: open %v, rest %v, intact %v, %v", edit, s.Open, s.Rest, s.Intact, err)
		}
	}
}

// Somebody who edits the table is noticed.
func TestVerify(t *testing.T) {
	for _, edit := range []string{
		"nft delete element inet saru open { 7 }",
		"nft add rule inet saru udp_0_ip goto ours",
		"nft flush chain inet saru judge_ip",
		"nft delete chain inet saru input",
		"nft delete table netdev saru",
	} {
		t.Run(edit, func(t *testing.T) {
			w := newNetwork(t, 1, config(time.Second))
			d := w.directors[0]
			if err := d.filter.Apply(nft.Desired{}); err != nil {
				t.Fatal(err)
			}
			d.run("nft add table inet operators")
			if ok, err := d.filter.Verify(); !ok || err != nil {
				t.Fatalf("before: %v, %v", ok, err)
			}
			d.run(edit)
			if ok, err := d.filter.Verify(); ok || err != nil {
				t.Errorf("after: %v, %v", ok, err)
			}
		})
	}
}

// One daemon to a namespace; and Close leaves nothing.
func TestOpenClose(t *testing.T) {
	w := newNetwork(t, 0, config(time.Second))
	h := newHost(t, "d1")
	h.plug(w.sw, "10.9.0.2/24")
	before := h.run("ip addr show dev lo") + h.run("nft list ruleset")
	var f *nft.Filter
	h.do(func() (err error) {
		f, err = nft.Open(config(time.Second))
		return err
	})
	if err := h.try(func() error { _, err := nft.Open(config(time.Second)); return err }); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second daemon: %v", err)
	}
	if tables := h.run("nft list tables"); tables != "table inet saru\ntable netdev saru\n" {
		t.Errorf("tables: %q", tables)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := h.run("ip addr show dev lo") + h.run("nft list ruleset"); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	// A table that a crash left, with everything open, is replaced.
	h.run("nft add table inet saru")
	h.run("nft add chain inet saru mine { type filter hook input priority 0 ; }")
	h.do(func() (err error) {
		f, err = nft.Open(config(time.Second))
		return err
	})
	if rules := h.run("nft list chains"); strings.Contains(rules, "mine") {
		t.Errorf("not replaced:\n%s", rules)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBadConfig(t *testing.T) {
	h := newHost(t, "d1")
	for what, change := range map[string]func(*nft.Config){
		"no VIP":             func(c *nft.Config) { c.Plan.VIPs = nil },
		"multicast MAC":      func(c *nft.Config) { c.MAC = []byte{1, 0, 0x5e, 0, 0, 1} },
		"buckets":            func(c *nft.Config) { c.Plan.Buckets = 100 },
		"sense":              func(c *nft.Config) { c.Plan.Default.Sense = 0 },
		"lease":              func(c *nft.Config) { c.Lease = time.Millisecond },
		"unknown interface":  func(c *nft.Config) { c.Interface = "none" },
		"share id too large": func(c *nft.Config) { c.ShareID = 256 },
	} {
		cfg := config(time.Second)
		cfg.Interface = "lo"
		change(&cfg)
		if err := h.try(func() error { _, err := nft.Open(cfg); return err }); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if rules := h.run("nft list ruleset"); rules != "" {
		t.Errorf("touched the kernel:\n%s", rules)
	}
}

func TestProbe(t *testing.T) {
	h := newHost(t, "probe")
	if err := h.try(nft.Probe); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if rules := h.run("nft list ruleset"); rules != "" {
		t.Errorf("left behind:\n%s", rules)
	}
}

func BenchmarkApply(b *testing.B) {
	for _, buckets := range []int{256, 1024, 4096} {
		b.Run(fmt.Sprint(buckets), func(b *testing.B) {
			cfg := config(time.Minute)
			cfg.Plan.Buckets = buckets
			w := newNetwork(b, 1, cfg)
			f := w.directors[0].filter
			all := partition.FullSet(buckets)
			half := partition.FullSet(buckets / 2)
			d := [2]nft.Desired{{Open: all, Rest: all}, {Open: half, Rest: all}}
			n := 0
			for b.Loop() {
				n++
				if err := f.Apply(d[n%2]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A new plan comes closed, and divides in its own way.
func TestReplan(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	ps := ports(64)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))

	cfg.Plan.Default.Sense |= partition.SrcAddr
	for _, d := range w.directors {
		d.do(func() error { return d.filter.Replan(cfg.Plan) })
		if s, err := d.filter.Stats(); err != nil || !s.Rest.Empty() || !s.Intact || s.LeaseLeft != 0 {
			t.Errorf("%s: %+v, %v; want closed", d.name, s, err)
		}
		if err := d.filter.Apply(nft.Desired{Open: d.owns, Rest: d.owns}); err != nil {
			t.Fatal(err)
		}
	}
	w.beat(2)
	w.mustDivide(cfg, ps, w.sendMany(ps, 64))
	cfg.Plan.Buckets *= 2
	if err := w.directors[0].filter.Replan(cfg.Plan); err == nil {
		t.Error("changed the number of buckets")
	}
}
