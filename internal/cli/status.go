package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"saru/internal/control"
)

// AnswerWithin is how long a daemon may take for a short answer.
const AnswerWithin = 5 * time.Second

// An Answer is a daemon's answer, to GET /status for one: JSON, and text for
// people.
type Answer interface {
	Print(w io.Writer) error
}

// Show writes an answer as JSON, or for people.
func Show(w io.Writer, a Answer, asJSON bool) error {
	if !asJSON {
		return a.Print(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(a)
}

// StatusCommand returns the command "status", which asks the daemon that
// client finds. empty returns a new Answer to decode into.
func StatusCommand(short string, client func() (*control.Client, error), empty func() Answer) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use: "status", Short: short, Args: NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			q := question{c, empty, asJSON}
			if watch {
				return q.watch(cmd.Context(), cmd.OutOrStdout())
			}
			return q.print(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print again every second")
	return cmd
}

type question struct {
	client *control.Client
	empty  func() Answer
	asJSON bool
}

func (q *question) print(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, AnswerWithin)
	defer cancel()
	st := q.empty()
	if err := q.client.Get(ctx, "/status", st); err != nil {
		return err
	}
	return Show(w, st, q.asJSON)
}

// watch prints the status every second until ctx ends, over the last one on a
// terminal.
func (q *question) watch(ctx context.Context, w io.Writer) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	over := !q.asJSON && isTerminal(w)
	for {
		var b bytes.Buffer
		if err := q.print(ctx, &b); err != nil && ctx.Err() == nil {
			fmt.Fprintln(&b, err)
		}
		if ctx.Err() != nil {
			return nil
		}
		text := b.Bytes()
		if over {
			text = inPlace(text)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// inPlace returns text so that a terminal shows it over what it showed before,
// without a moment of nothing in between (ECMA-48: CUP, EL, ED).
func inPlace(text []byte) []byte {
	const home, restOfLine, restOfScreen = "\x1b[H", "\x1b[K", "\x1b[J"
	out := append([]byte(home), bytes.ReplaceAll(text, []byte("\n"), []byte(restOfLine+"\n"))...)
	return append(out, restOfScreen...)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
