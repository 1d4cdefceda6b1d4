// Package control is how a daemon is asked and told things on its own
// machine: HTTP with JSON over a Unix socket.
//
// What must hold: only root and the daemon's own user reach the socket (mode
// 0600); a second daemon never takes the socket of a living one; the socket
// is gone after a clean stop.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/config"
	"saru/internal/web"
)

// maxAnswer bounds what a client reads of one answer, in bytes.
const maxAnswer = 1 << 30

// Listen takes the socket at path for the daemon called name. A socket file
// that nobody answers on is replaced; one with a living daemon behind it, and
// anything else that is there, is bad input.
func Listen(name, path string, h http.Handler) (*web.Server, error) {
	bad := func(err error) error {
		return config.Bad("control socket %q: %v; name another with control.socket", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, bad(err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, config.Bad("control socket %q: another %s answers there; stop it first, or name another socket with control.socket", path, name)
	}
	if err := removeStale(path); err != nil {
		return nil, bad(err)
	}
	ln, err := listenPrivate(path)
	if err != nil {
		return nil, bad(err)
	}
	return web.NewServer("control socket", ln, h), nil
}

// removeStale removes the socket that a daemon left which was killed, and nothing
// else.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != os.ModeSocket:
		return errors.New("there is something else, which is no socket")
	}
	return os.Remove(path)
}

// listenPrivate makes the socket with its mode: Linux makes its file with that of
// the descriptor (net/unix/af_unix.c, unix_bind_bsd), so it is at no time open
// to others.
func listenPrivate(path string) (net.Listener, error) {
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	return private.Listen(context.Background(), "unix", path)
}

// JSON writes v as the indented JSON answer to a request.
func JSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}

// A Client asks the daemon behind one socket.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a Client of the daemon whose socket is at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning = errors.New("no daemon answers")

// Get asks for resource ("/status") and decodes the answer into v.
func (c *Client) Get(ctx context.Context, resource string, v any) error {
	body, err := c.Do(ctx, http.MethodGet, resource, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(v)
}

// Post sends v as JSON to resource, and decodes the answer into out unless
// out is nil.
func (c *Client) Post(ctx context.Context, resource string, v, out any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	body, err := c.Do(ctx, http.MethodPost, resource, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(out)
}

// Do makes one request and returns the answer's body, which the caller
// closes. An answer that is not 2xx is an error with the daemon's own words.
func (c *Client) Do(ctx context.Context, method, resource string, in io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+resource, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w on %s: is it running, and with this control.socket?", ErrNotRunning, c.path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: only root may ask the daemon: %w", c.path, os.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return nil, errors.New(strings.TrimSpace(string(b)))
	}
	return resp.Body, nil
}
