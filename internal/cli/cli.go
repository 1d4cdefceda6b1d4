package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"saru/internal/config"
	"saru/internal/logs"
)

// A Program is one of the daemons.
type Program struct {
	Name, Short, Version string
	ConfigPath           string // where the configuration is unless --config says otherwise
	KeepHelp             string // what --keep leaves in place

	// Run is the daemon: it reads f's configuration, works until ctx ends and
	// calls ready once everything works.
	Run func(ctx context.Context, log *slog.Logger, f *Flags, ready func()) error
}

// Flags are what every command line has.
type Flags struct {
	Config string
	Keep   bool
	Debug  bool
	Level  slog.LevelVar // of the log; Debug's when the daemon starts

	facility string
}

// Main runs the command line until it is done or the process is told to end,
// and returns the exit status.
func Main(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", root.Name(), oneLine(err))
	}
	return config.ExitStatus(err)
}

// oneLine is what went wrong, of which several errors joined are lines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Command returns the command line of p: the daemon, "run" and "version". f is
// filled in when a command runs.
func (p *Program) Command(f *Flags) *cobra.Command {
	root := &cobra.Command{
		Use: p.Name, Short: p.Short, Version: p.Version, Args: NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.Context(), f) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return config.Bad("%s; see '%s --help'", flagError(err), cmd.CommandPath())
	})
	root.PersistentFlags().StringVar(&f.Config, "config", p.ConfigPath, "configuration file")
	run := &cobra.Command{Use: "run", Short: "Be the daemon (the default)", Args: NoArgs, RunE: root.RunE}
	for _, c := range []*cobra.Command{root, run} {
		c.Flags().BoolVar(&f.Debug, "debug", false, "log more")
		c.Flags().StringVar(&f.facility, "log_facility", defaultFacility(), "where to log: a syslog facility, or - for the terminal")
		c.Flags().BoolVar(&f.Keep, "keep", false, p.KeepHelp)
	}
	root.AddCommand(run, p.version())
	return root
}

// flagError is what is wrong with a flag, without the words of package strconv.
func flagError(err error) string {
	var num *strconv.NumError
	if !errors.As(err, &num) {
		return err.Error()
	}
	cure := "use a whole number from 0 on"
	switch {
	case num.Func == "ParseBool":
		cure = "use true or false"
	case errors.Is(num, strconv.ErrRange):
		cure = "use a smaller number"
	}
	return strings.TrimSuffix(err.Error(), num.Error()) + cure
}

func (p *Program) run(ctx context.Context, f *Flags) error {
	if f.Debug {
		f.Level.Set(slog.LevelDebug)
	}
	log, end, err := logs.New(p.Name, f.facility, &f.Level)
	if err != nil {
		return err
	}
	defer end()
	// Who reads the log may go away. Go would end a program that writes to it then.
	signal.Ignore(syscall.SIGPIPE)
	return p.Run(ctx, log, f, func() {
		log.Info("ready")
		// Without systemd there is nobody to tell; that is no error.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("tell systemd", "err", err)
		}
	})
}

func (p *Program) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), p.Name, p.Version)
			return err
		},
	}
}

// defaultFacility is the terminal where no syslog listens, so that an error is
// one line there.
func defaultFacility() string {
	if _, err := os.Stat("/dev/log"); errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	return "daemon"
}

// NoArgs refuses arguments, as bad input.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return config.Bad("%q is not a command or argument of '%s'; see '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return nil
}
