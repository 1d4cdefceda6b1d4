package web_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"saru/internal/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The end ends requests under way, and waits for their handlers.
func TestEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handling, returned := make(chan struct{}), false
	s := web.NewServer("test", ln, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(handling)
		<-r.Context().Done()
		returned = true
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	asked := make(chan error, 1)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() { _, err := client.Get("http://" + ln.Addr().String()); asked <- err }()
	<-handling
	cancel()
	if err := <-ended; err != nil || !returned {
		t.Errorf("Run: %v; the handler has returned: %v", err, returned)
	}
	<-asked // with an answer or without
	if err := s.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
}

// A listener that fails ends the daemon, and says whose it was.
func TestFailure(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := web.NewServer("test", ln, http.NotFoundHandler())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}
