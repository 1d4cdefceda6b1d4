package main

import (
	"context"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/director"
)

// bucketsCommand returns the command that says who has each bucket, and what
// came for it.
func bucketsCommand(f *cli.Flags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "buckets", Short: "Say who has each bucket, and how many packets of it were admitted and refused here", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client(f)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), cli.AnswerWithin)
			defer cancel()
			var b director.Buckets
			if err := c.Get(ctx, "/buckets", &b); err != nil {
				return err
			}
			return cli.Show(cmd.OutOrStdout(), &b, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
