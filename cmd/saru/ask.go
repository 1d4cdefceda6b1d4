package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/config"
	"saru/internal/control"
	"saru/internal/director"
	"saru/partition"
)

func client(f *cli.Flags) (*control.Client, error) {
	socket, err := director.Socket(f.Config)
	if err != nil {
		return nil, err
	}
	return control.NewClient(socket), nil
}

func statusCommand(f *cli.Flags) *cobra.Command {
	return cli.StatusCommand("The whole cluster: members, states, shares, epoch, lease",
		func() (*control.Client, error) { return client(f) },
		func() cli.Answer { return new(director.Status) })
}

// tellCommand returns a command that tells the daemon to do something, and
// waits until it is done.
func tellCommand(f *cli.Flags, use, short string, within time.Duration) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client(f)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), within)
			defer cancel()
			return c.Post(ctx, "/"+use, struct{}{}, nil)
		},
	}
}

func weightCommand(f *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use: "weight N", Short: "Change this director's weight until the daemon starts again, or reloads another one",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return config.Bad("'%s' takes the new weight, 1 to %d", cmd.CommandPath(), partition.MaxWeight)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 || n > partition.MaxWeight {
				return config.Bad("weight %q: use 1 to %d; 'saru drain' gives the share away", args[0], partition.MaxWeight)
			}
			c, err := client(f)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), cli.AnswerWithin)
			defer cancel()
			return c.Post(ctx, "/weight", director.Weight{Weight: n}, nil)
		},
	}
}

func checkCommand(f *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Validate the configuration, and what the kernel can do", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := director.Load(f.Config)
			if err != nil {
				return err
			}
			return director.Check(cmd.OutOrStdout(), s)
		},
	}
}
