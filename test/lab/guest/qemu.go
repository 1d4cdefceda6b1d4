package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelParameters make the guest quick to boot and a panic the end of QEMU.
// Namespaces are torn down after RCU grace periods, which are long under
// emulation unless expedited.
const kernelParameters = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off " +
	"nokaslr audit=0 nowatchdog random.trust_cpu=on rcupdate.rcu_expedited=1" + oneProcessor

// debugParameters let a debug kernel say on the console all that its checks
// find, and let its stalls pass that an emulator on a busy machine makes.
const debugParameters = " loglevel=5 panic_on_warn=1 rcupdate.rcu_cpu_stall_timeout=180"

// arguments is QEMU's command line.
func (m *machine) arguments() []string {
	parameters := kernelParameters
	if m.debug() {
		parameters += debugParameters
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-cpu", "max,arch-capabilities=off",
		"-smp", strconv.Itoa(m.SMP), "-m", strconv.Itoa(m.Memory),
		"-kernel", m.image.Kernel, "-initrd", m.path("initramfs"),
		"-append", strings.TrimSpace(parameters + " " + m.Append),
		"-serial", "file:" + m.Console,
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=lab,server=off,path=" + m.path("port"),
		"-device", "virtserialport,chardev=lab,name=" + portName,
		"-virtfs", "local,path=/,mount_tag=" + rootTag +
			",security_model=none,readonly=on,multidevs=remap",
	}
	args = append(args, accelerator(os.Getenv(accelVar))...)
	if m.Out != "" {
		args = append(args, "-virtfs", "local,path="+m.Out+",mount_tag="+outTag+
			",security_model=none,multidevs=remap")
	}
	return args
}

// accelVar says how the guest's processors are run.
const accelVar = "SARU_LAB_ACCEL"

// accelerator returns QEMU's arguments for a way to run the processors:
//
//   - "": emulated, a thread for each.
//   - "single": one thread, in which they take turns: slower, but none of them
//     runs code that another one is rewriting (see pinHooks).
//   - "icount": the same, and the guest's clocks count instructions, one a
//     nanosecond. A machine that is loaded by others makes the run longer, and
//     no time of the guest's; nothing is waited for either, since time leaps
//     to the next timer while all processors are idle. What the guest waits for
//     outside of it (a file that it reads for the first time) takes it any time.
//   - "kvm": the machine's own processor, if it can.
func accelerator(how string) []string {
	tcg := func(thread string) string { return "tcg,thread=" + thread + ",tb-size=512" }
	switch {
	case how == "kvm" && hasKVM():
		return []string{"-accel", "kvm", "-accel", tcg("multi")}
	case how == "icount":
		return []string{"-accel", tcg("single"), "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"}
	case how == "single":
		return []string{"-accel", tcg("single")}
	}
	return []string{"-accel", tcg("multi")}
}

func hasKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// qemu runs QEMU until it ends or ctx does.
func (m *machine) qemu(ctx context.Context) error {
	// The death signal below comes when this thread ends, not the process, so
	// the thread must live as long as QEMU.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments()...)
	var messages bytes.Buffer
	cmd.Stderr = &messages
	// A group of its own: the terminal's ^C is for this process, which passes
	// it on to the program in the guest.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("QEMU: %w: %s", err, lastLines(messages.Bytes(), 5))
	}
	return errors.New("QEMU ended")
}

// run starts QEMU and serves the channel until both are done.
func (m *machine) run(ctx context.Context) (int, error) {
	ctx, stop := context.WithTimeoutCause(ctx, m.Timeout, fmt.Errorf("%w after %v", ErrTimeout, m.Timeout))
	defer stop()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.path("port"), Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer listener.Close()

	// QEMU outlives ctx by stopGrace, so that the program can end well.
	qemuCtx, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	var qemuErr error
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer listener.Close() // nobody will connect any more
		qemuErr = m.qemu(qemuCtx)
	}()

	s := session{machine: m, stage: "starting QEMU"}
	code, err := s.serve(ctx, listener)
	if err == nil {
		// The guest switches itself off after its last frame.
		select {
		case <-gone:
		case <-time.After(stopGrace):
		}
	}
	if err != nil && ctx.Err() == nil {
		// The channel broke: give QEMU a moment to say why.
		select {
		case <-gone:
		case <-time.After(time.Second):
		}
	}
	kill()
	<-gone
	if err == nil && m.debug() {
		s.stage, err = "the kernel's checks", m.fault()
	}
	if err == nil {
		return code, nil
	}
	if ctx.Err() == nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, errFault) && qemuErr != nil {
		err = qemuErr
	}
	return 0, &Error{Stage: s.stage, Console: m.consoleEnd(), Err: err}
}

// How much of the console an error shows: of one that just ends, and of one
// with a fault, whose registers and call trace are long.
const (
	consoleLines = 20
	faultLines   = 80
)

// trouble is how the kernel's reports of its own faults begin; lockdep's say
// WARNING, those of debug objects ODEBUG.
var trouble = regexp.MustCompile(`(?m)^.*(BUG: |Oops: |kernel BUG at |general protection fault|\[ cut here \]|Kernel panic|WARNING: |ODEBUG: |INFO: (task|rcu|trying to register))`)

// errFault is the error of a run whose kernel has complained.
var errFault = errors.New("the kernel reported a fault")

// debug reports whether the guest's kernel has all checks.
func (m *machine) debug() bool { return strings.HasSuffix(m.Kernel, debugSuffix) }

// fault returns errFault if the console has a report of one.
func (m *machine) fault() error {
	text, err := os.ReadFile(m.Console)
	if err == nil && trouble.Match(text) {
		err = errFault
	}
	return err
}

// consoleEnd returns the end of the kernel's console, or what follows the
// kernel's first report of a fault if there was one.
func (m *machine) consoleEnd() string {
	text, err := os.ReadFile(m.Console)
	if err != nil {
		return ""
	}
	text = bytes.ReplaceAll(text, []byte("\r"), nil)
	if i := trouble.FindIndex(text); i != nil {
		lines := strings.SplitN(string(text[i[0]:]), "\n", faultLines+1)
		return strings.Join(lines[:min(len(lines), faultLines)], "\n")
	}
	return lastLines(text, consoleLines)
}

// session is the host's end of the channel.
type session struct {
	*machine
	stage string // what the guest is doing
	out   *frameWriter
}

// serve speaks with the guest until it has told the program's exit. When ctx
// ended before, that is the error, however the program took it.
func (s *session) serve(ctx context.Context, listener *net.UnixListener) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	}()
	boot := time.AfterFunc(bootTimeout, func() {
		cancel(fmt.Errorf("%w: no sign of the guest's init after %v", ErrTimeout, bootTimeout))
	})
	defer boot.Stop()
	defer context.AfterFunc(ctx, func() { listener.Close() })()

	conn, err := listener.AcceptUnix()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	s.stage = "booting"
	s.out = &frameWriter{w: conn}
	defer context.AfterFunc(ctx, func() {
		_ = s.out.write(frameSignal, []byte{byte(unix.SIGTERM)})
		_ = conn.SetReadDeadline(time.Now().Add(stopGrace))
	})()
	if err := s.sendJob(conn); err != nil {
		return 0, err
	}
	boot.Stop()
	s.stage = "running " + s.argv[0]
	return s.receive(conn)
}

// sendJob answers the guest's hello with what it shall run.
func (s *session) sendJob(conn net.Conn) error {
	kind, _, err := readFrame(conn)
	if err != nil {
		return fmt.Errorf("channel: %w", err)
	}
	if kind != frameHello {
		return fmt.Errorf("channel: frame %q in place of the hello", kind)
	}
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		EnvGuest + "=" + s.Kernel,
	}
	if s.Out != "" {
		env = append(env, "SARU_LAB_OUT="+OutDir)
	}
	text, err := json.Marshal(job{
		Argv: s.argv, Dir: s.Dir, Env: append(env, s.Env...),
		Release: s.image.Release, Modules: s.image.Modules, Out: s.Out != "",
	})
	if err != nil {
		return err
	}
	return s.out.write(frameJob, text)
}

// receive passes the program's output on until its exit.
func (s *session) receive(conn net.Conn) (int, error) {
	for {
		kind, payload, err := readFrame(conn)
		if err != nil {
			return 0, fmt.Errorf("channel: %w", err)
		}
		switch kind {
		case frameStdout:
			_, err = s.Stdout.Write(payload)
		case frameStderr:
			_, err = s.Stderr.Write(payload)
		case frameExit:
			return exitOf(payload)
		default:
			err = fmt.Errorf("unknown frame %q", kind)
		}
		if err != nil {
			return 0, fmt.Errorf("channel: %w", err)
		}
	}
}

func exitOf(payload []byte) (int, error) {
	var e exit
	if err := json.Unmarshal(payload, &e); err != nil {
		return 0, fmt.Errorf("channel: exit: %w", err)
	}
	if e.Error != "" {
		return 0, errors.New(e.Error)
	}
	return e.Code, nil
}
