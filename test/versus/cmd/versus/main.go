// Command versus measures syncd beside conntrackd: see package versus.
//
//	versus [--flows N] [--rate R]    as root; needs conntrackd and nft
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"saru/test/versus"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "versus:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) == 6 && os.Args[1] == "node" {
		flows, err := strconv.Atoi(os.Args[4])
		if err != nil {
			return err
		}
		rate, err := strconv.Atoi(os.Args[5])
		if err != nil {
			return err
		}
		return versus.Node(os.Args[2], os.Args[3], flows, rate)
	}
	flows := flag.Int("flows", 100_000, "how many new flows")
	rate := flag.Int("rate", 20_000, "how many of them a second; 0: as fast as they can be made")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "versus-")
	if err != nil {
		return err
	}
	results, err := versus.Run(ctx, self, dir, *flows, *rate)
	for _, r := range results {
		fmt.Println(r)
	}
	if err != nil {
		return fmt.Errorf("%w; logs are in %s", err, dir)
	}
	return os.RemoveAll(dir)
}
