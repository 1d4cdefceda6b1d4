package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Fence makes frames for a share's virtual addresses another host's, on one
// interface.
type Fence struct {
	handle *netlink.Handle
	device string
	share  int
	vips   []netip.Prefix
	index  int
	ours   bool // the clsact hook was put there for a Fence
}

// The names of Fences' filters tell them from those of others, and whether the
// hook is there for them only.
const (
	filterName     = "saru-fence"
	filterHookName = "saru-fence-hook"
)

// firstPriority is the place of share 0's Fence among the filters of the hook:
// late, so that others have been before it, and what they let pass goes on.
const firstPriority = 0x5a00

// OpenFence puts the program in place. That of a crash is replaced.
func OpenFence(device string, share int, vips []netip.Prefix) (_ *Fence, err error) {
	f := &Fence{device: device, share: share, vips: vips}
	if f.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("forward: open a netlink socket: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	link, err := f.handle.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("forward: interface %q: %w", device, err)
	}
	f.index = link.Attrs().Index
	if _, f.ours, err = f.find(); err != nil {
		return nil, err
	}
	return f, f.Restore()
}

// Restore puts the program in place, whether it is there or not.
func (f *Fence) Restore() error {
	switch err := f.handle.QdiscAdd(f.hook()); {
	case err == nil:
		f.ours = true
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("forward: traffic control on %s: %w; the kernel needs CONFIG_NET_SCH_INGRESS", f.device, err)
	}
	fd, err := load(assemble(f.vips))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := f.handle.FilterReplace(f.filter(fd)); err != nil {
		return fmt.Errorf("forward: filter on %s: %w; the kernel needs CONFIG_NET_CLS_BPF", f.device, err)
	}
	return nil
}

func (f *Fence) hook() netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: f.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

func (f *Fence) filter(fd int) *netlink.BpfFilter {
	name := filterName
	if f.ours {
		name = filterHookName
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: f.index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: f.priority(),
		},
		Fd: fd, Name: name, DirectAction: true,
	}
}

func (f *Fence) priority() uint16 { return firstPriority + uint16(f.share) }

// find reports whether the Fence's filter is there, and whether the hook is
// there for Fences: of this share after a crash, or of others.
func (f *Fence) find() (there, ours bool, err error) {
	all, err := f.filters(netlink.HANDLE_MIN_INGRESS)
	for _, other := range all {
		if bpf, is := other.(*netlink.BpfFilter); is && (bpf.Name == filterName || bpf.Name == filterHookName) {
			there = there || bpf.Priority == f.priority()
			ours = ours || bpf.Name == filterHookName
		}
	}
	return there, ours, err
}

func (f *Fence) filters(parent uint32) ([]netlink.Filter, error) {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: f.device, Index: f.index}}
	all, err := f.handle.FilterList(link, parent)
	// Without the hook there are none.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("forward: list the filters of %s: %w", f.device, err)
	}
	return all, nil
}

// Intact reports whether the program is in place.
func (f *Fence) Intact() (bool, error) {
	there, _, err := f.find()
	return there, err
}

// Close removes the program, and the hook if nobody else uses it. It may be
// called twice.
func (f *Fence) Close() error {
	if f.handle == nil {
		return nil
	}
	defer func() { f.handle.Close(); f.handle = nil }()
	there, _, err := f.find()
	if err != nil || f.index == 0 {
		return err
	}
	if there {
		if err := f.handle.FilterDel(f.filter(0)); err != nil {
			return fmt.Errorf("forward: remove the filter from %s: %w", f.device, err)
		}
	}
	if !f.ours {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := f.filters(parent); err != nil || len(others) > 0 {
			return err
		}
	}
	if err := f.handle.QdiscDel(f.hook()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("forward: remove traffic control from %s: %w", f.device, err)
	}
	return nil
}

// load gives a program to the kernel (bpf(2), BPF_PROG_LOAD).
func load(code []byte) (fd int, err error) {
	fd, errno := loadWith(code, nil)
	if errno == 0 {
		return fd, nil
	}
	log := make([]byte, 1<<16)
	if fd, again := loadWith(code, log); again == 0 {
		return fd, nil
	}
	return -1, fmt.Errorf("forward: load the fence into the kernel: %w%s", errno, because(log))
}

func loadWith(code, log []byte) (fd int, errno unix.Errno) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, insns   uint32
		code, license uint64
		logLevel      uint32
		logSize       uint32
		log           uint64
		version       uint32
		flags         uint32
		name          [16]byte
	}{
		kind: unix.BPF_PROG_TYPE_SCHED_CLS, insns: uint32(len(code) / insnSize),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	copy(attr.name[:], "saru_fence")
	if len(log) > 0 {
		attr.logLevel, attr.logSize, attr.log = 1, uint32(len(log)), uint64(uintptr(unsafe.Pointer(&log[0])))
	}
	r, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	runtime.KeepAlive(log)
	return int(r), errno
}

// because is the end of what the kernel said of a program that it refused.
func because(log []byte) string {
	log, _, _ = bytes.Cut(log, []byte{0})
	if len(log) == 0 {
		return ""
	}
	return ": " + string(log[max(0, len(log)-300):])
}
