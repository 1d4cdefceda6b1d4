// Saru divides the clients of a virtual address between the directors of a
// cluster, so that all of them work and each packet has exactly one acceptor.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"saru/internal/config"
	"saru/internal/director"
	"saru/internal/logs"
	"saru/internal/seal"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "saru:", err)
	}
	stop()
	os.Exit(config.ExitStatus(err))
}

// flags are the command line's.
type flags struct {
	config   string
	debug    bool
	facility string
	keep     bool
}

func command() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:           "saru",
		Short:         "Divide the clients of a virtual address between all directors of a cluster",
		Args:          noArgs,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), &f) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return config.Bad("%v; see '%s --help'", err, cmd.CommandPath())
	})
	root.PersistentFlags().StringVar(&f.config, "config", director.DefaultConfigPath, "configuration file")
	runCmd := &cobra.Command{Use: "run", Short: "Be the daemon (the default)", Args: noArgs, RunE: root.RunE}
	for _, c := range []*cobra.Command{root, runCmd} {
		c.Flags().BoolVar(&f.debug, "debug", false, "log more")
		c.Flags().StringVar(&f.facility, "log_facility", "daemon", "where to log: a syslog facility, or - for the terminal")
		c.Flags().BoolVar(&f.keep, "keep", false, "leave the closed tables, addresses and settings in place at the end")
	}
	root.AddCommand(runCmd, statusCommand(&f), drainCommand(&f, true), drainCommand(&f, false),
		keygenCommand(), checkCommand(&f), versionCommand())
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return config.Bad("%q is not a command or argument of '%s'; see '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return nil
}

func run(ctx context.Context, f *flags) error {
	log, err := logs.New("saru", f.facility, f.debug)
	if err != nil {
		return err
	}
	settings, err := director.Load(f.config)
	if err != nil {
		return err
	}
	return director.Run(ctx, log, settings, version, f.keep, func() {
		log.Info("ready")
		// Without systemd there is nobody to tell; that is no error.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("tell systemd", "err", err)
		}
	})
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keygen", Short: "Print a new cluster key", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), seal.NewKey())
			return err
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "saru", version)
			return err
		},
	}
}
