package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/syncd"
)

func traceCommand(f *cli.Flags) *cobra.Command {
	var asJSON bool
	var paths string
	var count uint64
	var filter syncd.Filter
	cmd := &cobra.Command{
		Use: "trace", Short: "Print updates as they pass, until interrupted", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := filter.Values()
			query.Set("path", paths)
			_, perr := syncd.ParsePaths(url.Values{"path": {paths}})
			if _, err := syncd.ParseFilter(query); err != nil || perr != nil {
				return errors.Join(err, perr)
			}
			c, err := client(f)
			if err != nil {
				return err
			}
			body, err := c.Do(cmd.Context(), http.MethodGet, "/trace?"+query.Encode(), nil)
			if err != nil {
				return err
			}
			defer body.Close()
			err = printTrace(cmd.OutOrStdout(), body, asJSON, count)
			if cmd.Context().Err() != nil {
				return nil // interrupted, as it should
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	cmd.Flags().StringVar(&paths, "path", "", "only these, with commas between: captured, sent, received, injected, legacy_heard, legacy_told")
	cmd.Flags().Uint64Var(&count, "count", 0, "end after so many; 0 for never")
	filterFlags(cmd, &filter)
	return cmd
}

var errTraceEnded = errors.New("the daemon ended the trace")

// printTrace prints the daemon's lines as they come, until count were printed.
func printTrace(w io.Writer, lines io.Reader, asJSON bool, count uint64) error {
	dec := json.NewDecoder(lines)
	for n := uint64(0); count == 0 || n < count; n++ {
		var line json.RawMessage
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			return errTraceEnded
		} else if err != nil {
			return fmt.Errorf("the daemon's answer: %w", err)
		}
		if asJSON {
			if _, err := fmt.Fprintf(w, "%s\n", line); err != nil {
				return err
			}
			continue
		}
		var ev syncd.TraceEvent
		if err := json.Unmarshal(line, &ev); err != nil {
			return fmt.Errorf("the daemon's answer: %w", err)
		}
		if err := ev.Print(w); err != nil {
			return err
		}
	}
	return nil
}
