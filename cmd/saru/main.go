// Saru divides the clients of a virtual address between the directors of a
// cluster, so that all of them work and each packet has exactly one acceptor.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/director"
	"saru/internal/seal"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(cli.Main(command())) }

func command() *cobra.Command {
	var f cli.Flags
	p := &cli.Program{
		Name: "saru", Short: "Divide the clients of a virtual address between all directors of a cluster",
		Version: version, ConfigPath: director.DefaultConfigPath,
		KeepHelp: "leave the closed tables, addresses and settings in place at the end",
		Run:      run,
	}
	root := p.Command(&f)
	root.AddCommand(statusCommand(&f), eventsCommand(&f), weightCommand(&f), explainCommand(&f), bucketsCommand(&f), keygenCommand(), checkCommand(&f),
		tellCommand(&f, "drain", "Give the share away, keep the membership; returns when it is gone", director.DrainWithin+cli.AnswerWithin),
		tellCommand(&f, "undrain", "Take a share again", cli.AnswerWithin),
		tellCommand(&f, "freeze", "Stop all planned moves of shares, on all directors", cli.AnswerWithin),
		tellCommand(&f, "unfreeze", "Let shares move again", cli.AnswerWithin))
	return root
}

func run(ctx context.Context, log *slog.Logger, f *cli.Flags, ready func()) error {
	settings, err := director.Load(f.Config)
	if err != nil {
		return err
	}
	return director.Run(ctx, settings, director.Options{
		Log: log, Level: &f.Level, Debug: f.Debug, Path: f.Config, Version: version, Keep: f.Keep, Ready: ready,
	})
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keygen", Short: "Print a new cluster key", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), seal.NewKey())
			return err
		},
	}
}
