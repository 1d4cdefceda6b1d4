package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"saru/internal/control"
	"saru/internal/syncd"
)

// askTimeout is how long a daemon may take for a short answer.
const askTimeout = 5 * time.Second

func (f *flags) client() (*control.Client, error) {
	socket, err := f.socket()
	if err != nil {
		return nil, err
	}
	return control.NewClient(socket), nil
}

func statusCommand(f *flags) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Peers, losses, repairs, the kernel's table against the mirror", Args: noArgs,
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
	var st syncd.Status
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

func connsCommand(f *flags) *cobra.Command {
	var asJSON bool
	var filter syncd.Filter
	cmd := &cobra.Command{
		Use: "conns", Short: "The mirror, as ipvsadm -Lnc would print it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := syncd.ParseFilter(filter.Values()); err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			body, err := c.Do(cmd.Context(), http.MethodGet, "/conns?"+filter.Values().Encode(), nil)
			if err != nil {
				return err
			}
			defer body.Close()
			w := bufio.NewWriter(cmd.OutOrStdout())
			if asJSON {
				err = printConnsJSON(w, body)
			} else {
				err = printConns(w, body)
			}
			return errors.Join(err, w.Flush())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.Flags().StringVar(&filter.Protocol, "proto", "", "only this protocol: tcp, udp, sctp or a number")
	cmd.Flags().StringVar(&filter.Client, "client", "", "only this client: address, address:port or prefix")
	cmd.Flags().StringVar(&filter.Virtual, "virtual", "", "only this virtual address, likewise")
	cmd.Flags().StringVar(&filter.Dest, "dest", "", "only this real server, likewise")
	return cmd
}

func printConns(w io.Writer, lines io.Reader) error {
	if err := syncd.PrintConnsHead(w); err != nil {
		return err
	}
	dec := json.NewDecoder(lines)
	for {
		var c syncd.Conn
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the daemon's answer: %w", err)
		}
		if err := c.Print(w); err != nil {
			return err
		}
	}
}

// printConnsJSON makes an array of the daemon's lines.
func printConnsJSON(w io.Writer, lines io.Reader) error {
	sc := bufio.NewScanner(lines)
	between := "[\n"
	for sc.Scan() {
		if _, err := fmt.Fprintf(w, "%s  %s", between, sc.Bytes()); err != nil {
			return err
		}
		between = ",\n"
	}
	end := "\n]\n"
	if between == "[\n" {
		end = "[]\n"
	}
	_, err := io.WriteString(w, end)
	return errors.Join(sc.Err(), err)
}

func resyncCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "resync", Short: "Pull everything again from all peers", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var done syncd.Resynced
			if err := c.Post(cmd.Context(), "/resync", struct{}{}, &done); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "pulled everything from %d peers; the mirror has %d connections\n", done.Peers, done.Connections)
			return err
		},
	}
}
