// Command demo shows the product's promise in the lab: see package demo.
//
//	demo --host --kernel 6.1 --sync syncd --out DIR    boots a guest and runs there
//	demo --out DIR                                     runs here: a kernel with IPVS, root
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"saru/internal/config"
	"saru/test/demo"
	"saru/test/lab"
	"saru/test/lab/guest"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "client" {
		exit(demo.ClientMain(os.Args[2]))
	}
	var o options
	flag.BoolVar(&o.host, "host", false, "boot a guest with the kernel, unless this machine's own has IPVS")
	flag.StringVar(&o.kernel, "kernel", "6.1", "the guest's kernel: 6.1 or 6.12")
	flag.StringVar(&o.sync, "sync", demo.SyncSyncd, "what synchronises connections: syncd, kernel or kernel-tuned")
	flag.StringVar(&o.out, "out", "out/demo", "folder for the timeline, and for the logs of a run that failed")
	flag.BoolVar(&o.brief, "brief", false, "three failovers, fewer flows")
	flag.BoolVar(&o.keep, "keep", false, "leave the logs of a run that went well, too")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if o.host && !lab.HasIPVS() {
		exit(o.boot(ctx))
	}
	exit(o.run(ctx))
}

type options struct {
	host, brief, keep bool
	kernel, sync, out string
}

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(config.ExitStatus(err))
}

// boot runs the demonstration in a guest.
func (o options) boot(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	args := []string{
		"run", "--kernel", o.kernel, "--out", out, "--timeout", "30m", "--console", filepath.Join(out, "console.log"),
		"--", self, "--sync", o.sync, "--out", guest.OutDir,
	}
	if o.brief {
		args = append(args, "--brief")
	}
	if o.keep {
		args = append(args, "--keep")
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	fmt.Printf("booting Linux %s in an emulated machine; its clock is real, its processors are slow\n", o.kernel)
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "lab"), args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the demonstration in the guest: %w", err)
	}
	fmt.Printf("the timeline is %s\n", filepath.Join(out, "timeline.html"))
	return nil
}

// run makes the demonstration on this kernel.
func (o options) run(ctx context.Context) error {
	if !lab.HasIPVS() {
		return config.Bad("this kernel has no IPVS; run the demonstration in a guest with --host")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	plan := demo.Full()
	if o.brief {
		plan = demo.Brief()
	}
	plan.Sync = o.sync
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	report, err := demo.Run(ctx, plan, demo.Binaries{
		Saru: filepath.Join(bin, "saru"), Syncd: filepath.Join(bin, "syncd"), Client: []string{self, "client"},
	}, dir, os.Stdout)
	if report == nil {
		return err
	}
	report.Print(os.Stdout)
	if werr := writeTimeline(report, o.out); werr != nil {
		return werr
	}
	if err == nil {
		err = report.Err()
	}
	if err != nil || o.keep {
		demo.Keep(dir, o.out)
	}
	if err != nil {
		return err
	}
	fmt.Println("\nEvery flow that was established lived on, with the right bytes.")
	return nil
}

func writeTimeline(r *demo.Report, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(out, "timeline.html"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.WriteHTML(f); err != nil {
		return err
	}
	return f.Close()
}
