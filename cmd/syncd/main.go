// Syncd mirrors IPVS connections between all directors of a cluster, so that
// whichever of them gets a packet knows its connection.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/config"
	"saru/internal/control"
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
	root.AddCommand(statusCommand(&f), connsCommand(&f), traceCommand(&f), resyncCommand(&f))
	return root
}

func run(ctx context.Context, log *slog.Logger, f *cli.Flags, ready func()) error {
	settings, err := syncd.Load(f.Config)
	if err != nil {
		return err
	}
	return syncd.Run(ctx, log, settings, f.Keep, ready)
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
