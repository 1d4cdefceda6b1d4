package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"saru/internal/control"
	"saru/internal/director"
)

// askTimeout is how long a daemon may take for an answer.
const askTimeout = 5 * time.Second

func (f *flags) client() (*control.Client, error) {
	socket, err := director.Socket(f.config)
	if err != nil {
		return nil, err
	}
	return control.NewClient(socket), nil
}

func statusCommand(f *flags) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "The whole cluster: members, states, shares, epoch, lease", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			if !watch {
				return printStatus(cmd.Context(), c, cmd.OutOrStdout(), asJSON)
			}
			return watchStatus(cmd.Context(), c, cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print again every second")
	return cmd
}

func printStatus(ctx context.Context, c *control.Client, w io.Writer, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var st director.Status
	if err := c.Get(ctx, "/status", &st); err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	return st.Print(w)
}

// watchStatus prints the status every second until ctx ends, over the last one
// on a terminal.
func watchStatus(ctx context.Context, c *control.Client, w io.Writer, asJSON bool) error {
	const home = "\x1b[H\x1b[2J"
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var b bytes.Buffer
		if err := printStatus(ctx, c, &b, asJSON); err != nil && ctx.Err() == nil {
			fmt.Fprintln(&b, err)
		}
		if ctx.Err() != nil {
			return nil
		}
		if !asJSON {
			fmt.Fprint(w, home)
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func drainCommand(f *flags, on bool) *cobra.Command {
	use, short := "undrain", "Take a share again"
	if on {
		use, short = "drain", "Give the share away, keep the membership"
	}
	return &cobra.Command{
		Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			return c.Post(ctx, "/"+use, struct{}{}, nil)
		},
	}
}

func checkCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Validate the configuration, and what the kernel can do", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := director.Load(f.config)
			if err != nil {
				return err
			}
			return director.Check(cmd.OutOrStdout(), s)
		},
	}
}
