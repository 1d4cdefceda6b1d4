// Command lab runs programs on a Debian kernel with IPVS, in a guest.
//
//	lab run --kernel 6.1 -- /usr/sbin/ipvsadm -Ln
//	lab run --kernel 6.12-debug -- /bin/true
//	lab fetch --kernel 6.12
//
// The exit status of run is that of the program in the guest, or 128 + signal;
// 125 when the guest failed (no boot, a panic, a fault that a kernel of
// test/lab/debug-kernel.sh reports), 124 when its time was over, and
// 2 for bad usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"saru/test/lab/guest"
)

const (
	statusUsage   = 2
	statusTimeout = 124
	statusGuest   = 125
)

func main() {
	if guest.IsInit() {
		guest.Init()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
	}
	os.Exit(status)
}

func run(ctx context.Context, args []string) (status int, err error) {
	if len(args) == 0 {
		return statusUsage, errors.New("no subcommand, give run or fetch")
	}
	switch args[0] {
	case "run":
		return runGuest(ctx, args[1:])
	case "fetch":
		return fetch(ctx, args[1:])
	default:
		return statusUsage, fmt.Errorf("subcommand %q: unknown, give run or fetch", args[0])
	}
}

// list is a flag that may be given again and again.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func runGuest(ctx context.Context, args []string) (int, error) {
	flags := flag.NewFlagSet("lab run", flag.ContinueOnError)
	c := guest.Config{Stdout: os.Stdout, Stderr: os.Stderr}
	kernelFlag(flags, &c.Kernel)
	flags.StringVar(&c.Out, "out", "", "folder to share, writable, as "+guest.OutDir+" ($SARU_LAB_OUT)")
	flags.IntVar(&c.SMP, "smp", 2, "processors")
	flags.IntVar(&c.Memory, "mem", 4096, "memory in MiB")
	flags.DurationVar(&c.Timeout, "timeout", 15*time.Minute, "for the whole run")
	flags.StringVar(&c.Dir, "dir", "", "working directory (default the current one)")
	flags.StringVar(&c.Append, "append", "", "more kernel parameters, e.g. ip_vs.conn_tab_bits=16")
	flags.StringVar(&c.Console, "console", "", "file for the kernel's console")
	flags.Var((*list)(&c.Env), "env", "K=V for the program, repeatable")
	if err := flags.Parse(args); err != nil {
		return statusUsage, nil // flag has said what is wrong
	}
	if flags.NArg() == 0 {
		return statusUsage, errors.New("run: no program, give its absolute path after --")
	}
	self, err := os.Executable()
	if err != nil {
		return statusGuest, err
	}
	c.Init = self
	code, err := guest.Run(ctx, c, flags.Args()...)
	switch {
	case errors.Is(err, guest.ErrTimeout):
		return statusTimeout, err
	case err != nil:
		return statusGuest, err
	}
	return code, nil
}

func fetch(ctx context.Context, args []string) (int, error) {
	flags := flag.NewFlagSet("lab fetch", flag.ContinueOnError)
	var series string
	kernelFlag(flags, &series)
	if err := flags.Parse(args); err != nil {
		return statusUsage, nil
	}
	img, err := guest.Fetch(ctx, series)
	if err != nil {
		return 1, err
	}
	fmt.Println(img.Release, img.Kernel)
	return 0, nil
}

func kernelFlag(flags *flag.FlagSet, series *string) {
	flags.StringVar(series, "kernel", "6.1", "kernel series: "+strings.Join(guest.Kernels(), ", ")+"; with -debug one that test/lab/debug-kernel.sh has built")
}
