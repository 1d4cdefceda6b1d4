// Command compare measures the ways to synchronise connections side by side:
// see package compare.
//
//	compare --host --kernel 6.1 --out DIR    a guest for each way, then the table
//	compare --host --clock virtual …         in guests whose clock counts instructions
//	compare --way syncd-module --out DIR     one way, here: a kernel with IPVS, root
//	compare --report DIR …                   the table of what was measured before
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"saru/internal/config"
	"saru/test/compare"
	"saru/test/lab"
	"saru/test/lab/guest"
)

func main() {
	var o options
	flag.BoolVar(&o.host, "host", false, "boot a guest for each way")
	flag.BoolVar(&o.report, "report", false, "print the table of the folders given")
	flag.StringVar(&o.kernel, "kernel", "6.1", "the guests' kernel: 6.1 or 6.12")
	flag.StringVar(&o.ways, "ways", strings.Join(append(compare.Ways, compare.None), ","), "the ways, for --host")
	flag.StringVar(&o.way, "way", "", "the way to measure here")
	flag.StringVar(&o.clock, "clock", compare.Real, "what the guests' clock runs by: real, the machine's, or virtual, a nanosecond an instruction")
	flag.StringVar(&o.module, "module", "", "ip_vs_user_sync.ko, built for this kernel (default: as kmod/check.sh leaves it)")
	flag.StringVar(&o.out, "out", "out/compare", "folder for the results")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := o.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
	}
	os.Exit(config.ExitStatus(err))
}

type options struct {
	host, report                          bool
	kernel, ways, way, clock, module, out string
}

func (o *options) run(ctx context.Context) error {
	switch {
	case o.clock != compare.Real && o.clock != compare.Virtual:
		return config.Bad("--clock %q: give %s or %s", o.clock, compare.Real, compare.Virtual)
	case o.report:
		return report(ctx, flag.Args())
	case o.host:
		for _, way := range strings.Split(o.ways, ",") {
			if err := o.boot(ctx, way); err != nil {
				return err
			}
		}
		return report(ctx, []string{o.out})
	case o.way == "":
		return config.Bad("give --host, --report or --way (%s)", strings.Join(compare.Ways, ", "))
	}
	return o.measure(ctx)
}

// boot measures one way in a guest.
func (o *options) boot(ctx context.Context, way string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := guest.Config{
		Kernel: o.kernel, Out: o.out, Init: filepath.Join(filepath.Dir(self), "lab"),
		Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if o.clock == compare.Virtual {
		// Processors that take turns would wait for each other's turns.
		c.SMP = 1
		if err := os.Setenv("SARU_LAB_ACCEL", "icount"); err != nil {
			return err
		}
	}
	argv := []string{self, "--way", way, "--clock", o.clock, "--kernel", o.kernel, "--out", guest.OutDir}
	if o.module != "" {
		argv = append(argv, "--module", o.module)
	}
	fmt.Fprintf(os.Stderr, "%s on Linux %s …\n", way, o.kernel)
	code, err := guest.Run(ctx, c, argv...)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	if err != nil {
		return fmt.Errorf("%s in the guest: %w", way, err)
	}
	return nil
}

// measure measures one way on this kernel.
func (o *options) measure(ctx context.Context) error {
	if !lab.HasIPVS() {
		return config.Bad("this kernel has no IPVS; measure in guests with --host")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	module := o.module
	if module == "" {
		module = filepath.Join(bin, "..", ".cache", "kmod", o.kernel, "ip_vs_user_sync.ko")
	}
	dir, err := os.MkdirTemp("", "compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	say := func(what string) { fmt.Fprintf(os.Stderr, "%7.1f s  %s\n", time.Since(start).Seconds(), what) }
	return compare.Run(ctx, o.way, o.clock, filepath.Join(bin, "syncd"), module, dir, say, func(r *compare.Result) error {
		r.Kernel = o.kernel
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(o.out, r.Kernel+"-"+r.Clock+"-"+r.Way+".json"), b, 0o644)
	})
}

// report prints what was measured into the folders. It fails if a goal was
// missed.
func report(ctx context.Context, dirs []string) error {
	var results []*compare.Result
	for _, way := range append(append([]string{}, compare.Ways...), compare.None) {
		for _, dir := range dirs {
			files, err := filepath.Glob(filepath.Join(dir, "*-"+way+".json"))
			if err != nil {
				return err
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				r := &compare.Result{}
				if err := json.Unmarshal(b, r); err != nil {
					return fmt.Errorf("%s: %w", f, err)
				}
				// "kernel" ends no other way's name, but be exact.
				if r.Way == way {
					results = append(results, r)
				}
			}
		}
	}
	pong, err := compare.Calibrate(ctx)
	if err != nil {
		return err
	}
	errs := []error{compare.Report(os.Stdout, results, pong)}
	for _, r := range results {
		errs = append(errs, r.Goals())
	}
	return errors.Join(errs...)
}
