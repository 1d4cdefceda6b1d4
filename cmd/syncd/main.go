// Syncd mirrors IPVS connections between all directors of a cluster, so that
// whichever of them gets a packet knows its connection.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"saru/internal/config"
	"saru/internal/logs"
	"saru/internal/syncd"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "syncd:", err)
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
		Use:           "syncd",
		Short:         "Mirror IPVS connections between all directors of a cluster",
		Args:          noArgs,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), &f) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return config.Bad("%v; see '%s --help'", err, cmd.CommandPath())
	})
	root.PersistentFlags().StringVar(&f.config, "config", syncd.DefaultConfigPath, "configuration file")
	runCmd := &cobra.Command{Use: "run", Short: "Be the daemon (the default)", Args: noArgs, RunE: root.RunE}
	for _, c := range []*cobra.Command{root, runCmd} {
		c.Flags().BoolVar(&f.debug, "debug", false, "log more")
		c.Flags().StringVar(&f.facility, "log_facility", defaultFacility(), "where to log: a syslog facility, or - for the terminal")
		c.Flags().BoolVar(&f.keep, "keep", false, "leave the kernel's sync threads and settings in place at the end")
	}
	root.AddCommand(runCmd, statusCommand(&f), connsCommand(&f), resyncCommand(&f), versionCommand())
	return root
}

// defaultFacility is the terminal where no syslog listens, so that an error is
// one line there.
func defaultFacility() string {
	if _, err := os.Stat("/dev/log"); err != nil {
		return "-"
	}
	return "daemon"
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return config.Bad("%q is not a command or argument of '%s'; see '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return nil
}

func run(ctx context.Context, f *flags) error {
	log, err := logs.New("syncd", f.facility, f.debug)
	if err != nil {
		return err
	}
	settings, err := syncd.Load(f.config)
	if err != nil {
		return err
	}
	return syncd.Run(ctx, log, settings, f.keep, func() {
		log.Info("ready")
		// Without systemd there is nobody to tell; that is no error.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("tell systemd", "err", err)
		}
	})
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "syncd", version)
			return err
		},
	}
}

// socket returns the control socket that the configuration names; without a
// configuration at the default place, the default.
func (f *flags) socket() (string, error) {
	file := syncd.DefaultFile()
	if _, err := os.Stat(f.config); f.config == syncd.DefaultConfigPath && errors.Is(err, os.ErrNotExist) {
		return file.Control.Socket, nil
	}
	err := config.Load(f.config, &file)
	return file.Control.Socket, err
}
