package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"saru/internal/cli"
	"saru/internal/control"
	"saru/internal/syncd"
)

func statusCommand(f *cli.Flags) *cobra.Command {
	return cli.StatusCommand("Peers, losses, repairs, the kernel's table against the mirror",
		func() (*control.Client, error) { return client(f) },
		func() cli.Answer { return new(syncd.Status) })
}

func checkCommand(f *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Validate the configuration, and what the kernel can do", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := syncd.Load(f.Config)
			if err != nil {
				return err
			}
			return syncd.Check(cmd.OutOrStdout(), s)
		},
	}
}

func connsCommand(f *cli.Flags) *cobra.Command {
	var asJSON bool
	var limit uint32
	var filter syncd.Filter
	cmd := &cobra.Command{
		Use: "conns", Short: "The mirror, as ipvsadm -Lnc would print it", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := syncd.ParseFilter(filter.Values()); err != nil {
				return err
			}
			c, err := client(f)
			if err != nil {
				return err
			}
			query := filter.Values()
			query.Set("limit", strconv.FormatUint(uint64(limit), 10))
			body, err := c.Do(cmd.Context(), http.MethodGet, "/conns?"+query.Encode(), nil)
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
	cmd.Flags().Uint32Var(&limit, "limit", 0, "no more than so many; 0 for all")
	filterFlags(cmd, &filter)
	return cmd
}

func filterFlags(cmd *cobra.Command, filter *syncd.Filter) {
	for _, x := range []struct {
		to         *string
		name, help string
	}{
		{&filter.Protocol, "proto", "only this protocol: tcp, udp, sctp or a number"},
		{&filter.Client, "client", "only this client: address, address:port or prefix"},
		{&filter.Virtual, "virtual", "only this virtual address, likewise"},
		{&filter.Dest, "dest", "only this real server, likewise"},
		{&filter.State, "state", "only this state, as ipvsadm names it: ESTABLISHED, FIN_WAIT, UDP, ..."},
		{&filter.Owner, "owner", "owned: only what this director told last; foreign: only what others did"},
	} {
		cmd.Flags().StringVar(x.to, x.name, "", x.help)
	}
	// Who knows them as a VIP finds them too.
	cmd.Flags().StringVar(&filter.Virtual, "vip", "", "the same as --virtual")
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

func resyncCommand(f *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use: "resync", Short: "Pull everything again from all peers", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client(f)
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
