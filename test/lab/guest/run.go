package guest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Config says which guest to boot and how.
type Config struct {
	Kernel  string        // series, "6.1" or "6.12", or one with checks, "6.12-debug"; default 6.1
	Out     string        // folder of the machine to share as OutDir; default none
	SMP     int           // processors; default 2
	Memory  int           // MiB; default 4096
	Timeout time.Duration // for the whole run, boot included; default 15 min
	Dir     string        // working directory of the program; default the caller's
	Env     []string      // K=V, beside PATH, HOME and the lab's own
	Append  string        // more kernel parameters, "ip_vs.conn_tab_bits=16"

	// Init is a static program that calls IsInit and Init first of all, for the
	// guest's first process. When there is none, or a dynamic one, the command
	// lab is built with the go tool and taken.
	Init string

	Stdout, Stderr io.Writer // default: discarded
	Console        string    // file for the kernel's console; default one that is removed
}

// bootTimeout bounds the time from starting QEMU to hearing of init. It takes
// 5 to 10 s on an idle machine, debug kernels several times that.
const bootTimeout = 3 * time.Minute

// stopGrace is how long a program may take to end after its context did, and
// how long QEMU may take to end after its program did.
const stopGrace = 5 * time.Second

// Error is a failure of the guest, not of the program in it.
type Error struct {
	Stage   string // what the guest was doing
	Console string // the end of the kernel's console
	Err     error
}

func (e *Error) Error() string {
	msg := fmt.Sprintf("guest failed: %s: %v", e.Stage, e.Err)
	if e.Console != "" {
		msg += "\nthe console's last lines:\n" + e.Console
	}
	return msg
}

func (e *Error) Unwrap() error { return e.Err }

// ErrTimeout is the cause of an Error when Config.Timeout was over.
var ErrTimeout = errors.New("timeout")

func (c Config) withDefaults() (Config, error) {
	if c.Kernel == "" {
		c.Kernel = "6.1"
	}
	if c.SMP == 0 {
		c.SMP = 2
	}
	if c.Memory == 0 {
		c.Memory = 4096
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Minute
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	var err error
	if c.Dir == "" {
		if c.Dir, err = os.Getwd(); err != nil {
			return c, err
		}
	}
	if c.Out != "" {
		if c.Out, err = filepath.Abs(c.Out); err != nil {
			return c, err
		}
		if err := os.MkdirAll(c.Out, 0o755); err != nil {
			return c, err
		}
		if strings.Contains(c.Out, ",") {
			return c, fmt.Errorf("out folder %q: a comma cannot be passed to QEMU, choose another", c.Out)
		}
	}
	return c, nil
}

// Run boots a guest, runs argv in it (argv[0] is an absolute path) and returns
// its exit status, 128 + signal when one ended it. When ctx ends the program
// gets SIGTERM and stopGrace to end, then the guest is killed. Failures of the
// guest are an *Error, and so is any fault that a debug kernel reports, however
// the program ended; other errors are of the caller's or the machine's making.
func Run(ctx context.Context, c Config, argv ...string) (int, error) {
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return 0, fmt.Errorf("program %q: give an absolute path", argv)
	}
	c, err := c.withDefaults()
	if err != nil {
		return 0, err
	}
	if err := Install(ctx, "qemu-system-x86_64", "modprobe", "xz"); err != nil {
		return 0, err
	}
	img, err := Fetch(ctx, c.Kernel)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "saru-lab-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	m := &machine{Config: c, image: img, argv: argv, tmp: tmp}
	if m.Console == "" {
		m.Console = filepath.Join(tmp, "console.log")
	}
	if err := m.buildInitramfs(ctx); err != nil {
		return 0, fmt.Errorf("initramfs: %w", err)
	}
	return m.run(ctx)
}

// machine is one guest.
type machine struct {
	Config
	image Image
	argv  []string
	tmp   string // of this run, removed at its end
}

func (m *machine) path(name string) string { return filepath.Join(m.tmp, name) }

func (m *machine) buildInitramfs(ctx context.Context) error {
	program := m.Init
	if !isStatic(program) {
		program = m.path("lab")
		if err := buildInit(ctx, program); err != nil {
			return err
		}
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	modules, err := loadModules(ctx, m.image.Modules)
	if err != nil {
		return err
	}
	return os.WriteFile(m.path("initramfs"), initramfs(binary, modules), 0o600)
}

// isStatic reports whether file is a program that runs where nothing else is.
func isStatic(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

func buildInit(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", file, "saru/test/lab/cmd/lab")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the guest's init: %w: %s", err, out)
	}
	return nil
}
