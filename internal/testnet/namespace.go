package testnet

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace.
type Namespace = netns.NsHandle

// NewNamespace makes one, without links but a loopback that is down.
func NewNamespace(t *testing.T) Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	must(t, err)
	defer before.Close()
	ns, err := netns.New()
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	must(t, netns.Set(before))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Within runs do in the namespace. Goroutines that do starts are not in it.
func Within(ns Namespace, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	defer netns.Set(before)
	return do()
}

// Handle speaks of the namespace's links, from anywhere.
func Handle(t *testing.T, ns Namespace) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE) // others a kernel may lack
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// Up gives a link addresses, such as "10.97.0.1/24", and brings it up. IPv6
// addresses are usable at once.
func Up(t *testing.T, h *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	link, err := h.LinkByName(name)
	must(t, err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, h.AddrAdd(link, addr))
	}
	must(t, h.LinkSetUp(link))
}

// Await waits until what is true. Its minute is a bound for a stuck test, no
// assertion.
func Await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
