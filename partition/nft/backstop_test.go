package nft_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"

	"golang.org/x/sys/unix"
)

// The backstop silences a connection that nobody knows while its bucket is
// settling, and leaves it to the stack's reset afterwards.
func TestBackstop(t *testing.T) {
	cfg := config(time.Minute)
	cfg.Backstop = true
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	d := w.directors[0]
	all := partition.FullSet(cfg.Plan.Buckets)
	if err := d.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := d.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	b := cfg.Plan.Bucket(cfg.Plan.Default, netip.AddrPortFrom(vip, 20001), netip.AddrPortFrom(vip, port))
	if s, err := d.filter.Stats(); err != nil || s.Settling != all {
		t.Fatalf("%v, %v", s.Settling, err)
	}
	// The last ACK of the handshake is in the middle of a connection, so
	// without IPVS to take it the server never hears it, and does not greet.
	if c, err := w.dial(20001, port, 5*time.Second); err != nil {
		t.Error(err)
	} else {
		if who, err := hear(c, 300*time.Millisecond); who != "" {
			t.Errorf("%q, %v", who, err)
		}
		c.Close()
	}
	if s, err := d.filter.Stats(); err != nil || s.Silenced == 0 {
		t.Errorf("silenced %d, %v", s.Silenced, err)
	}
	one := partition.SetOf(b)
	if err := d.filter.Settle(&one, 0); err != nil {
		t.Fatal(err)
	}
	if s, err := d.filter.Stats(); err != nil || s.Settling != all.Minus(one) {
		t.Errorf("%v, %v", s.Settling, err)
	}
	if err := d.filter.Settle(&all, 0); err != nil {
		t.Fatal(err)
	}
	if who, err := w.greeting(20002, 5*time.Second); who != d.name {
		t.Errorf("%q, %v", who, err)
	}
}

// With IPVS: a connection whose bucket moves to a director that does not know
// it hears nothing while the bucket settles, and a reset after that.
func TestIPVS(t *testing.T) {
	const service = 4343
	cfg := config(time.Minute)
	cfg.Backstop = true
	w := newNetwork(t, 2, cfg)
	w.resolve()
	w.beat(1)
	if err := w.directors[0].try(func() error { return exec.Command("ipvsadm", "-L").Run() }); err != nil {
		t.Skip("no IPVS in this kernel, or no ipvsadm")
	}
	real := &director{host: newHost(t, "r1"), heard: make(map[uint32]int)}
	real.plug(w.sw, "10.9.0.200/24")
	real.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("1"), 0) })
	real.run("ip addr add 10.9.0.100/32 dev lo")
	for _, d := range w.directors {
		for _, proto := range []string{"-t", "-u"} {
			d.run(fmt.Sprintf("ipvsadm -A %s %v:%d -s rr", proto, vip, service))
			d.run(fmt.Sprintf("ipvsadm -a %s %v:%d -r 10.9.0.200 -g", proto, vip, service))
		}
	}
	saved := port
	port = service
	real.serve()
	port = saved

	d1, d2 := w.directors[0], w.directors[1]
	all := partition.FullSet(cfg.Plan.Buckets)
	share := func(d *director, s partition.Set) {
		t.Helper()
		if err := d.filter.Apply(nft.Desired{Open: s, Rest: s}); err != nil {
			t.Fatal(err)
		}
	}
	share(d2, partition.Set{})
	share(d1, all)
	c, err := w.dial(20001, service, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := hear(c, 10*time.Second); who != "r1" {
		t.Fatalf("%q, %v", who, err)
	}
	if err := d2.filter.Settle(&all, time.Minute); err != nil {
		t.Fatal(err)
	}
	share(d1, partition.Set{})
	share(d2, all)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s, err := d2.filter.Stats(); err != nil || s.Silenced > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing was silenced")
		}
	}
	var timeout net.Error
	if who, err := hear(c, 300*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("while settling: %q, %v; want silence", who, err)
	}
	share(d2, partition.Set{})
	share(d1, all)
	if who, err := hear(c, 20*time.Second); who != "r1" {
		t.Fatalf("back on the director that knows it: %q, %v", who, err)
	}
	if err := d2.filter.Settle(&all, 0); err != nil {
		t.Fatal(err)
	}
	share(d1, partition.Set{})
	share(d2, all)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if who, err := hear(c, 20*time.Second); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("settled: %q, %v; want a reset", who, err)
	}
}
