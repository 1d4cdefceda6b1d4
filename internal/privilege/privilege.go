// Package privilege gives up what a daemon no longer needs.
//
// What must hold: after Keep no thread of the process, and no program that it
// executes, has or can get a capability that was not kept.
package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastCap is higher than any capability that a kernel knows
// (include/uapi/linux/capability.h).
const lastCap = 63

// ErrNotSupported says that this program cannot give up capabilities for all
// its threads: it was built with cgo.
var ErrNotSupported = errors.New("cannot give up capabilities: built with cgo")

// Keep gives up all capabilities but those named (unix.CAP_...), for good. A
// capability that the process does not have is not gained.
func Keep(caps ...int) error {
	var keep [2]uint32 // two words of capability sets, as capset(2) has them
	for _, c := range caps {
		keep[c/32] |= 1 << (c % 32)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	for c := range lastCap + 1 {
		if keep[c/32]&(1<<(c%32)) != 0 {
			continue
		}
		// EINVAL: the kernel knows no such capability. EPERM: only who has
		// CAP_SETPCAP may; then no_new_privs keeps it from coming back.
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	// Fails where there are none to be had.
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i := range data {
		data[i].Permitted &= keep[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	hdr.Pid = 0 // each thread's own
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
	return explain("capset", errno)
}

// prctl calls prctl(2) on all threads.
func prctl(option int, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, uintptr(option), a, b, 0, 0, 0)
	return explain("prctl", errno)
}

func explain(what string, errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return ErrNotSupported
	}
	return fmt.Errorf("%s: %w", what, errno)
}
