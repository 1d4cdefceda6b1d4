package main

import (
	"context"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/config"
	"saru/internal/director"
	"saru/partition"
)

// explainCommand returns the command that says who takes a flow, and why.
func explainCommand(f *cli.Flags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain PROTOCOL CLIENT VIP",
		Short: "Say which director takes a flow, and why",
		Long: `Say which director takes a flow, and why.

PROTOCOL is tcp, udp, sctp, icmp or a number. CLIENT and VIP have a port where
the protocol has ports, and none where it has not.`,
		Example: `  saru explain tcp 198.51.100.7:40312 10.9.0.100:80
  saru explain udp [2001:db8::7]:5353 [2001:db8::100]:53
  saru explain icmp 198.51.100.7 10.9.0.100`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 3 {
				return config.Bad("%d arguments: use 'saru explain tcp 198.51.100.7:40312 10.9.0.100:80'", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := partition.ParseFlow(args[0], args[1], args[2]); err != nil {
				return config.Bad("%v", err)
			}
			c, err := client(f)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), cli.AnswerWithin)
			defer cancel()
			var e director.Explanation
			if err := c.Get(ctx, director.ExplainQuery(args[0], args[1], args[2]), &e); err != nil {
				return err
			}
			return cli.Show(cmd.OutOrStdout(), &e, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
