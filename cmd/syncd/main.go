// Syncd mirrors IPVS connections between all directors of a cluster, so that
// whichever of them gets a packet knows its connection.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"saru/internal/cli"
	"saru/internal/config"
	"saru/internal/control"
	"saru/internal/privilege"
	"saru/internal/syncd"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(cli.Main(command())) }

func command() *cobra.Command {
	var f cli.Flags
	p := &cli.Program{
		Name: "syncd", Short: "Mirror IPVS connections between all directors of a cluster",
		Version: version, ConfigPath: syncd.DefaultConfigPath,
		KeepHelp: "leave the kernel's sync threads and settings in place at the end",
		Run:      run,
	}
	root := p.Command(&f)
	root.AddCommand(statusCommand(&f), connsCommand(&f), traceCommand(&f), resyncCommand(&f), checkCommand(&f))
	return root
}

func run(ctx context.Context, log *slog.Logger, f *cli.Flags, ready func()) error {
	settings, err := syncd.Load(f.Config)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	return syncd.Run(ctx, log, settings, syncd.Options{
		Keep: f.Keep, Level: &f.Level, Debug: f.Debug, Hangup: hangup, Config: f.Config,
		Ready: func() {
			// Modules are loaded and files are open; what is left needs no more.
			if err := privilege.Keep(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW); err != nil {
				log.Warn("capabilities that are not needed stay", "err", err)
			}
			ready()
		},
	})
}

// client asks at the control socket that the configuration names; without a
// configuration at the default place, at the default one.
func client(f *cli.Flags) (*control.Client, error) {
	file := syncd.DefaultFile()
	if _, err := os.Stat(f.Config); f.Config != syncd.DefaultConfigPath || !errors.Is(err, os.ErrNotExist) {
		if err := config.Load(f.Config, &file); err != nil {
			return nil, err
		}
	}
	return control.NewClient(file.Control.Socket), nil
}
