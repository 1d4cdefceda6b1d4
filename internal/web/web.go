// Package web serves HTTP as a task of a daemon.
//
// What must hold: the end of the task ends every request that is under way, and
// none is being answered any more when Run returns; what the handlers look at may
// be closed then.
package web

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Server serves one listener. It is a task.
type Server struct {
	name    string
	ln      net.Listener
	handler http.Handler
	busy    sync.RWMutex // held for reading by each request
	up      chan struct{}
}

// NewServer returns a Server, called name, of ln, which is its own from now on.
// A handler must return soon after its request's context ended.
func NewServer(name string, ln net.Listener, h http.Handler) *Server {
	return &Server{name: name, ln: ln, handler: h, up: make(chan struct{})}
}

// Close gives the listener back. It is for a Server that does not run, and does
// no harm after Run.
func (s *Server) Close() error {
	if err := s.ln.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	close(s.up)
	if err := srv.Serve(s.ln); ctx.Err() == nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.busy.Lock() // when the last request is answered
	defer s.busy.Unlock()
	return nil
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.busy.RLock()
	defer s.busy.RUnlock()
	if r.Context().Err() == nil {
		s.handler.ServeHTTP(w, r)
	}
}

// Ready is closed when requests are served.
func (s *Server) Ready() <-chan struct{} { return s.up }

func (s *Server) String() string { return s.name }

// A Late is a handler that is given its Handler before anything is served: the
// listener is taken first, since whoever has it is the one daemon here.
type Late struct{ http.Handler }
