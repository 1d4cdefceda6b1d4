package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/director"
)

func eventsCommand(f *cli.Flags) *cobra.Command {
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use: "events", Short: "What happened, and why: states, masters, moves of shares; the last 1,000",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client(f)
			if err != nil {
				return err
			}
			ctx, resource := cmd.Context(), "/events"
			if follow {
				resource += "?follow=1"
			} else {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, cli.AnswerWithin)
				defer cancel()
			}
			body, err := c.Do(ctx, "GET", resource, nil)
			if err != nil {
				return err
			}
			defer body.Close()
			err = printEvents(cmd.OutOrStdout(), body, asJSON)
			if cmd.Context().Err() != nil {
				return nil // somebody has seen enough
			}
			if follow && err == nil {
				return errors.New("the daemon has ended")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what happens from now on")
	return cmd
}

func printEvents(w io.Writer, body io.Reader, asJSON bool) error {
	if asJSON {
		_, err := io.Copy(w, body)
		return err
	}
	for dec := json.NewDecoder(body); ; {
		var e director.Event
		switch err := dec.Decode(&e); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("events: %w", err)
		}
		if err := e.Print(w); err != nil {
			return err
		}
	}
}
