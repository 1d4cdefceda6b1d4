package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"saru/internal/config"
)

const (
	// tunMTU carries the largest message whose records the master counts
	// right (MaxRecords of them).
	tunMTU = 9300
	// tunQueue is how many datagrams wait for us in the kernel; what comes
	// when it is full is dropped, and counted as tx_dropped.
	tunQueue = 10000
)

// tunAddr is the address that the master thread sends from. It is link-local,
// so no router forwards it, and global in scope, as the thread demands.
var tunAddr = netip.MustParseAddr("169.254.81.48")

// openTUN attaches to the TUN interface name, which it makes unless a crash
// left it. It is bad input if somebody else is attached.
func openTUN(name string) (_ *os.File, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, config.Bad("interface %q: /dev/net/tun: %v; load the tun module, and run as root", name, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, config.Bad("interface %q: not an interface name of at most 15 bytes", name)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, config.Bad("interface %q: another syncd has it; stop that one first", name)
	case errors.Is(err, unix.EINVAL):
		return nil, config.Bad("interface %q: exists and is not a TUN interface; remove it or choose another name", name)
	case err != nil:
		return nil, fmt.Errorf("attach to the TUN interface %q: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, fmt.Errorf("keep the TUN interface %q: %w", name, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("TUN interface %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// removeTUN lets the interface go when f is closed, and closes it.
func removeTUN(f *os.File) error {
	raw, err := f.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 0) })
		err = errors.Join(err, cerr)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("remove the TUN interface: %w", err)
	}
	return nil
}

// checkTUN says in what the interface is not as setupTUN made it.
func checkTUN(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	if a := link.Attrs(); a.Flags&net.FlagUp == 0 || a.MTU != tunMTU || a.TxQLen != tunQueue {
		return fmt.Errorf("interface %q: %v, MTU %d, queue %d; must be up, %d, %d", name, a.Flags, a.MTU, a.TxQLen, tunMTU, tunQueue)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	switch {
	case slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(tunAddr.AsSlice()) }):
		return nil // even if others' addresses changed during the look
	case err != nil:
		return fmt.Errorf("interface %q: list addresses: %w", name, err)
	}
	return fmt.Errorf("interface %q: has no address %v", name, tunAddr)
}

// setupTUN gives the interface its address and brings it up; repeating it
// changes nothing.
func setupTUN(name string) error {
	v6 := filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
	if err := os.WriteFile(v6, []byte("1\n"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("interface %q without IPv6: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	if err := netlink.LinkSetMTU(link, tunMTU); err != nil {
		return fmt.Errorf("interface %q: set MTU %d: %w", name, tunMTU, err)
	}
	if err := netlink.LinkSetTxQLen(link, tunQueue); err != nil {
		return fmt.Errorf("interface %q: set queue %d: %w", name, tunQueue, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: tunAddr.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("interface %q: add address %v: %w", name, tunAddr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %q: bring up: %w", name, err)
	}
	return nil
}
