// Failover measures failovers of saru beside keepalived's, and how saru does on
// a busy machine. It needs root, keepalived and a kernel with nf_tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"saru/test/failover"
	"saru/test/lab"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run() error {
	kills := flag.Int("kills", 30, "power cuts of each system")
	busy := flag.Duration("busy", 0, "instead: serve for so long on busy processors, and count false fencings")
	binary := flag.String("saru", "bin/saru", "the saru to measure")
	out := flag.String("out", "out/failover", "folder for logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := lab.Root(); err != nil {
		return err
	}
	saru, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(saru); err != nil {
		return fmt.Errorf("%w; run 'make build' first", err)
	}
	dir, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	if *busy > 0 {
		fences, err := failover.Busy(ctx, os.Stdout, dir, saru, failover.Saru(saru, "default"), *busy)
		if err == nil && fences > 0 {
			err = errors.New("a living director was taken for dead")
		}
		return err
	}
	results, err := failover.Run(ctx, os.Stdout, dir, *kills,
		failover.Keepalived("1", 2*time.Second), failover.Keepalived("0.1", time.Second), failover.Keepalived("0.01", time.Second),
		failover.Saru(saru, "default"), failover.Saru(saru, "fast"))
	failover.Print(os.Stdout, results)
	return err
}
