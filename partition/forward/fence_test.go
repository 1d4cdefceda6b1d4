package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A pair is two hosts on a link: a client and a director with eth0 each.
type pair struct {
	*testing.T
	client, director netns.NsHandle
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if err := Probe(); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	p := &pair{T: t}
	for _, ns := range []*netns.NsHandle{&p.client, &p.director} {
		must(t, onThread(func() (err error) {
			*ns, err = netns.New()
			return err
		}))
		t.Cleanup(func() { ns.Close() })
	}
	must(t, p.in(p.client, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.director)})
	}))
	for _, c := range []string{"ip link set lo up", "ip link set eth0 up"} {
		p.run(p.client, c)
		p.run(p.director, c)
	}
	p.run(p.client, "ip addr add 10.9.0.1/16 dev eth0")
	p.run(p.client, "ip -6 addr add 2001:db8::1/16 dev eth0 nodad")
	for _, a := range []string{"10.9.0.2/16", "10.9.0.100/16", "10.9.7.9/16"} {
		p.run(p.director, "ip addr add "+a+" dev eth0")
	}
	for _, a := range []string{"2001:db8::2/16", "2001:db8::100/16", "2001:db8:7::9/16"} {
		p.run(p.director, "ip -6 addr add "+a+" dev eth0 nodad")
	}
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		done <- f()
	}()
	return <-done
}

func (p *pair) in(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

func (p *pair) run(ns netns.NsHandle, command string) string {
	p.Helper()
	var out []byte
	must(p.T, p.in(ns, func() (err error) {
		args := strings.Fields(command)
		if out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return nil
	}))
	return string(out)
}

// answers reports whether address answers a ping. Where it should it is asked
// again: a busy machine may take longer than a second.
func (p *pair) answers(address string, should bool) bool {
	tries := 1
	if should {
		tries = 5
	}
	for range tries {
		if p.in(p.client, func() error { return exec.Command("ping", "-c", "1", "-W", "1", address).Run() }) == nil {
			return true
		}
	}
	return false
}

// Without any rule of nftables nothing for a virtual address is accepted, and
// all else is.
func TestFence(t *testing.T) {
	p := newPair(t)
	vips := []netip.Prefix{
		netip.MustParsePrefix("10.9.0.100/32"), netip.MustParsePrefix("10.9.7.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("2001:db8::100/128"), netip.MustParsePrefix("2001:db8:7::/48"),
	}
	var f *Fence
	must(t, p.in(p.director, func() (err error) {
		f, err = OpenFence("eth0", 1, vips)
		return err
	}))
	check := func(when string, virtual bool) {
		t.Helper()
		for _, a := range []string{"10.9.0.100", "10.9.7.9", "2001:db8::100", "2001:db8:7::9"} {
			if p.answers(a, virtual) != virtual {
				t.Errorf("%s: %s answers: %v", when, a, !virtual)
			}
		}
		for _, a := range []string{"10.9.0.2", "2001:db8::2"} {
			if !p.answers(a, true) {
				t.Errorf("%s: %s, an own address, does not answer", when, a)
			}
		}
	}
	check("fenced", false)
	if is, err := f.Intact(); !is || err != nil {
		t.Errorf("intact: %v, %v", is, err)
	}
	// A second one is what follows a crash.
	var after *Fence
	must(t, p.in(p.director, func() (err error) {
		after, err = OpenFence("eth0", 1, vips[:1])
		return err
	}))
	if p.answers("10.9.0.100", false) || !p.answers("10.9.7.9", true) {
		t.Error("the fence of a crash was not replaced")
	}
	must(t, p.in(p.director, after.Close))
	check("after", true)
	if out := p.run(p.director, "tc qdisc show dev eth0"); strings.Contains(out, "clsact") {
		t.Errorf("left behind: %s", out)
	}
	if is, err := f.Intact(); is || err != nil {
		t.Errorf("removed by another, intact: %v, %v", is, err)
	}
	must(t, p.in(p.director, f.Restore))
	check("restored", false)
	must(t, p.in(p.director, func() error { return errors.Join(f.Close(), f.Close()) }))
}

// The filters of others stay, and so does the hook that they use.
func TestFenceBesideOthers(t *testing.T) {
	p := newPair(t)
	p.run(p.director, "tc qdisc add dev eth0 clsact")
	p.run(p.director, "tc filter add dev eth0 ingress protocol ip pref 7 u32 match ip dst 10.9.0.77/32 flowid 1:1")
	var f *Fence
	must(t, p.in(p.director, func() (err error) {
		f, err = OpenFence("eth0", 1, []netip.Prefix{netip.MustParsePrefix("10.9.0.100/32")})
		return err
	}))
	if p.answers("10.9.0.100", false) {
		t.Error("not fenced")
	}
	must(t, p.in(p.director, f.Close))
	if out := p.run(p.director, "tc filter show dev eth0 ingress"); !strings.Contains(out, "u32") || strings.Contains(out, filterName) {
		t.Errorf("filters: %s", out)
	}
}

// Each share of an interface has a fence of its own; the last takes the hook
// away.
func TestFencesOfShares(t *testing.T) {
	p := newPair(t)
	var fences []*Fence
	for i, vip := range []string{"10.9.0.100/32", "10.9.7.9/32"} {
		must(t, p.in(p.director, func() error {
			f, err := OpenFence("eth0", i+1, []netip.Prefix{netip.MustParsePrefix(vip)})
			fences = append(fences, f)
			return err
		}))
	}
	if p.answers("10.9.0.100", false) || p.answers("10.9.7.9", false) {
		t.Error("one of two is not fenced")
	}
	must(t, p.in(p.director, fences[0].Close))
	if !p.answers("10.9.0.100", true) || p.answers("10.9.7.9", false) {
		t.Error("the other's fence is not as it was")
	}
	must(t, p.in(p.director, fences[1].Close))
	if out := p.run(p.director, "tc qdisc show dev eth0"); strings.Contains(out, "clsact") {
		t.Errorf("left behind: %s", out)
	}
}

// As many virtual addresses as a share can have make a program that the kernel
// takes.
func TestManyAddresses(t *testing.T) {
	var vips []netip.Prefix
	for i := range 64 {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i), 0})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 4: byte(i), 15: 1})
		}
		vips = append(vips, netip.PrefixFrom(a, a.BitLen()))
	}
	fd, err := load(assemble(vips))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	must(t, err)
	unix.Close(fd)
}
