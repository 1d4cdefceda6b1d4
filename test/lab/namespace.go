package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace with a mount namespace of its own, held by
// two descriptors and by one thread. Processes are started from that thread,
// so that the kernel kills them when this process dies (PR_SET_PDEATHSIG is
// tied to the parent's thread).
type namespace struct {
	net, mnt *os.File
	inode    uint64 // of net

	calls chan func()
	ended chan struct{} // the thread serves no more
	once  sync.Once
}

// newNamespace makes an empty namespace with a private, empty /run.
func newNamespace() (*namespace, error) {
	ns := &namespace{calls: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	go onOwnThread(func() {
		defer close(ns.ended)
		err := ns.make()
		made <- err
		if err != nil {
			return
		}
		for f := range ns.calls {
			f()
		}
	})
	if err := <-made; err != nil {
		ns.release()
		return nil, fmt.Errorf("namespace: %w", err)
	}
	return ns, nil
}

// make moves the calling thread into new namespaces and opens them.
func (ns *namespace) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare, are you root?: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("private /run: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("own /sys: %w", err)
	}
	var err error
	if ns.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if ns.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.net.Fd()), &st); err != nil {
		return err
	}
	ns.inode = st.Ino
	return nil
}

// onOwnThread runs f on a thread that ends with it, since its namespaces are
// not those of the process any more. The main thread would not end but hang
// around, so it is not used.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // locked: the runtime ends the thread
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

var errNamespaceGone = errors.New("power is off")

// onThread runs f on the namespace's own thread. Calls run one after another.
func (ns *namespace) onThread(f func() error) error {
	done := make(chan error, 1)
	select {
	case <-ns.ended:
		return errNamespaceGone
	case ns.calls <- func() { done <- f() }:
		return <-done
	}
}

// do runs f on a thread of its own inside the namespace; calls run at once.
func (ns *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go onOwnThread(func() {
		if err := ns.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	})
	return <-done
}

func (ns *namespace) enter() error {
	// The kernel lets a thread change its mount namespace only when it shares
	// no root and working directory with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	if err := unix.Setns(int(ns.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	if err := unix.Setns(int(ns.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// release gives up the thread and the descriptors. What holds the namespace
// after that is a process in it, or a descriptor of somebody else.
func (ns *namespace) release() {
	ns.once.Do(func() {
		close(ns.calls)
		<-ns.ended
		for _, f := range []*os.File{ns.net, ns.mnt} {
			if f != nil {
				f.Close()
			}
		}
	})
}

// processes lists the processes whose first thread is in the network namespace.
func (ns *namespace) processes() ([]int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("net:[%d]", ns.inode)
	var pids []int
	for _, l := range links {
		// A process that ended meanwhile has no link any more.
		if got, err := os.Readlink(l); err != nil || got != want {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(l))))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// kill sends SIGKILL to everything in the namespace until nothing is left.
func (ns *namespace) kill() error {
	return eventually("its processes to end", func() error {
		pids, err := ns.processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			// ESRCH: it ended by itself.
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v live", pids)
		}
		return nil
	})
}
