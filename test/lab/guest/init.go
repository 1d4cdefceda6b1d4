package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names that both ends of QEMU's devices agree on.
const (
	portName = "saru.lab"
	rootTag  = "root"
	outTag   = "out"
)

// OutDir is where Config.Out appears in the guest; the program finds it in the
// environment as SARU_LAB_OUT too.
const OutDir = "/lab/out"

// EnvGuest is set to the kernel series in the environment of guest programs.
const EnvGuest = "SARU_LAB_KERNEL"

// IsInit reports whether this process is the first one of a guest, so that it
// must call Init and nothing else.
func IsInit() bool { return os.Getpid() == 1 && os.Args[0] == "/init" }

// Init is the guest's first process: it mounts the machine's file system, runs
// the job that the host sends, reports its exit and switches the guest off. It
// never returns. Its errors go to the console.
func Init() {
	if err := initMain(); err != nil {
		fmt.Fprintf(os.Stderr, "lab init: %v\n", err)
	}
	unix.Sync()
	// The host runs QEMU with -no-reboot.
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	fmt.Fprintf(os.Stderr, "lab init: reboot: %v\n", err)
	select {}
}

func initMain() error {
	if err := loadBootModules("/modules"); err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	if err := mountSystem(); err != nil {
		return err
	}
	port, err := openPort(portName)
	if err != nil {
		return err
	}
	defer port.Close()
	out := &frameWriter{w: port}
	if err := out.write(frameHello, nil); err != nil {
		return err
	}
	j, err := readJob(port)
	if err != nil {
		return err
	}
	ended := serveJob(j, port, out)
	text, err := json.Marshal(ended)
	if err != nil {
		return err
	}
	unix.Sync()
	return out.write(frameExit, text)
}

// loadBootModules loads the initramfs's modules in the order of their names.
func loadBootModules(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range files {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", e.Name(), err)
		}
	}
	return nil
}

// mountPoint is one mount(2).
type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mountPoint) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts []mountPoint) error {
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

const options9p = "trans=virtio,version=9p2000.L,msize=512000"

// enterRoot makes the machine's file system, below a RAM overlay, the root.
func enterRoot() error {
	err := mountAll([]mountPoint{
		{"tmpfs", "/root", "tmpfs", 0, "mode=755,size=75%"},
		{rootTag, "/root/machine", "9p", unix.MS_RDONLY, options9p + ",cache=loose"},
	})
	if err != nil {
		return err
	}
	for _, d := range []string{"/root/upper", "/root/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	overlay := mountPoint{
		"overlay", "/root/all", "overlay", 0,
		"lowerdir=/root/machine,upperdir=/root/upper,workdir=/root/work",
	}
	if err := overlay.mount(); err != nil {
		return err
	}
	if err := os.Chdir("/root/all"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// mountSystem mounts what a running Debian has, and brings lo up.
func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := mountAll([]mountPoint{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", quiet, ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", quiet, ""},
	})
	if err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("open files: %w", err)
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	return loopbackUp()
}

// loopbackUp sets lo up in the guest's first network namespace.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// openPort opens the virtio serial port of that name. The kernel learns the
// name a moment after the driver was loaded, so it waits, for 10 s at most.
func openPort(name string) (*os.File, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			text, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(text)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio port %q", name)
}

func readJob(port io.Reader) (job, error) {
	kind, text, err := readFrame(port)
	if err != nil {
		return job{}, fmt.Errorf("job: %w", err)
	}
	if kind != frameJob {
		return job{}, fmt.Errorf("job: frame %q instead", kind)
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return job{}, fmt.Errorf("job: %w", err)
	}
	return j, nil
}

// serveJob runs the job's program to its end, then ends all that it left.
func serveJob(j job, port io.Reader, out *frameWriter) exit {
	if err := prepare(j); err != nil {
		return exit{Code: 127, Error: err.Error()}
	}
	stdout, closeOut, err := outputPipe(stream{frameStdout, out})
	if err != nil {
		return exit{Code: 127, Error: err.Error()}
	}
	stderr, closeErr, err := outputPipe(stream{frameStderr, out})
	if err != nil {
		return exit{Code: 127, Error: err.Error()}
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return exit{Code: 127, Error: err.Error()}
	}
	pid, err := start(j, null, stdout, stderr)
	if err != nil {
		return exit{Code: 127, Error: fmt.Sprintf("start %s: %v", j.Argv[0], err)}
	}
	// Ends with the guest: the port has no end of file.
	go passSignals(port, pid)
	code := reap(pid)
	// Whatever runs on would hold the pipes open. -1 spares this process.
	_ = unix.Kill(-1, unix.SIGKILL)
	closeOut()
	closeErr()
	return exit{Code: code}
}

// prepare puts the modules and the writable share in their places.
func prepare(j job) error {
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	link := filepath.Join("/lib/modules", j.Release)
	if _, err := os.Lstat(link); err != nil {
		if err := os.Symlink(j.Modules, link); err != nil {
			return err
		}
	}
	// Nobody else makes the device node by which the module would be found.
	if out, err := modprobe("tun"); err != nil {
		return fmt.Errorf("modprobe tun: %w: %s", err, out)
	}
	if err := pinHooks(); err != nil {
		return err
	}
	if err := startProcessors(); err != nil {
		return err
	}
	if !j.Out {
		return nil
	}
	share := mountPoint{outTag, OutDir, "9p", unix.MS_NOATIME, options9p + ",cache=none"}
	return share.mount()
}

func modprobe(module string) ([]byte, error) {
	cmd := exec.Command("/sbin/modprobe", module)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd.CombinedOutput()
}

// outputPipe returns the end that a program writes to, and a function that
// closes it and waits until all that was written has been passed on.
func outputPipe(to io.Writer) (w *os.File, finish func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		// A failed write means that the host is gone, and the guest with it.
		_, _ = io.Copy(onlyWriter{to}, onlyReader{r})
		r.Close()
	})
	return w, func() { w.Close(); copying.Wait() }, nil
}

// onlyReader and onlyWriter keep io.Copy from splicing around them.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func start(j job, stdin, stdout, stderr *os.File) (int, error) {
	return syscall.ForkExec(j.Argv[0], j.Argv, &syscall.ProcAttr{
		Dir:   j.Dir,
		Env:   j.Env,
		Files: []uintptr{stdin.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// passSignals hands signals from the host to the program's process group.
func passSignals(port io.Reader, pid int) {
	for {
		kind, payload, err := readFrame(port)
		if err != nil {
			return
		}
		if kind == frameSignal && len(payload) == 1 {
			_ = unix.Kill(-pid, unix.Signal(payload[0]))
		}
	}
}

// reap waits for all orphans, as a first process must, until the program ends.
func reap(pid int) (code int) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 127
		case got == pid && status.Exited():
			return status.ExitStatus()
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}
