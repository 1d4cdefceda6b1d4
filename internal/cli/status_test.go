package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"saru/internal/control"
)

// count is a status that says how often it was asked for.
type count struct{ Asked int }

func (c *count) Print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "asked %d times\n", c.Asked)
	return err
}

// answers serves a status on a socket until the test ends.
func answers(t *testing.T, before func(asked int)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "sock")
	var c count
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		c.Asked++
		before(c.Asked)
		if c.Asked == 2 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		control.JSON(w, &c)
	})
	s, err := control.Listen("test", socket, mux)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	<-s.Ready()
	return socket
}

// The status is asked for again until somebody has seen enough, and a daemon
// that does not answer once is no reason to stop.
func TestWatch(t *testing.T) {
	for _, form := range []struct {
		args []string
		want string
	}{
		{[]string{"--watch"}, "asked 1 times\nbusy\nasked 3 times\n"},
		{[]string{"--watch", "--json"}, "{\n  \"Asked\": 1\n}\nbusy\n{\n  \"Asked\": 3\n}\n"},
	} {
		t.Run(strings.Join(form.args, " "), func(t *testing.T) {
			t.Parallel()
			ctx, stop := context.WithCancel(t.Context())
			socket := answers(t, func(asked int) {
				if asked == 4 {
					stop()
				}
			})
			cmd := StatusCommand("", func() (*control.Client, error) { return control.NewClient(socket), nil }, func() Answer { return new(count) })
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetArgs(form.args)
			if err := cmd.ExecuteContext(ctx); err != nil {
				t.Error(err)
			}
			if out.String() != form.want {
				t.Errorf("got %q, want %q", out.String(), form.want)
			}
		})
	}
}

// On a terminal each takes the place of the one before, line by line.
func TestInPlace(t *testing.T) {
	if got, want := string(inPlace([]byte("a\nb\n"))), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if isTerminal(&bytes.Buffer{}) {
		t.Error("a buffer is a terminal")
	}
}
