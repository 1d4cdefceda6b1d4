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

	"saru/internal/config"
)

// maxAnswer bounds what a client reads of one answer, in bytes.
const maxAnswer = 1 << 30

// A Server serves a daemon's control socket. It is a task.
type Server struct {
	name string
	ln   net.Listener
	srv  *http.Server
	up   chan struct{}
}

// Listen takes the socket at path for the daemon called name. A socket file
// that nobody answers on is replaced; one with a living daemon behind it is
// bad input.
func Listen(name, path string, h http.Handler) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, config.Bad("control socket %q: %v; name another with control.socket", path, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, config.Bad("control socket %q: another %s answers there; stop it first, or name another socket with control.socket", path, name)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, config.Bad("control socket %q: %v; name another with control.socket", path, err)
	}
	ln, err := listenPrivate(path)
	if err != nil {
		return nil, config.Bad("control socket %q: %v; name another with control.socket", path, err)
	}
	return &Server{name, ln, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}, make(chan struct{})}, nil
}

func listenPrivate(path string) (net.Listener, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// Close gives the socket back without having run.
func (s *Server) Close() error { return s.ln.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.srv.Serve(s.ln) }()
	close(s.up)
	select {
	case err := <-done:
		return fmt.Errorf("control socket: %w", err)
	case <-ctx.Done():
	}
	s.srv.Close()
	<-done
	return nil
}

// Ready is closed when requests are served.
func (s *Server) Ready() <-chan struct{} { return s.up }

func (s *Server) String() string { return "control socket" }

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
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w on %s: is it running, and with this control.socket?", ErrNotRunning, c.path)
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
