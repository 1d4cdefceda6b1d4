package traffic

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Shorter makes short HTTP requests at a steady pace, each over a connection
// of its own.
type Shorter struct {
	Log   *Log
	To    string
	Path  string
	Pace  time.Duration // from one request's start to the next one's
	Limit time.Duration // for one try
	Tries int           // of one request, at least 1
}

// Run makes requests until ctx ends or stop is closed.
func (s *Shorter) Run(ctx context.Context, stop <-chan struct{}) {
	client := &http.Client{Timeout: s.Limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: s.Limit, KeepAlive: -1}).DialContext,
	}}
	tick := time.NewTicker(s.Pace)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.request(ctx, client)
		case <-stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *Shorter) request(ctx context.Context, client *http.Client) {
	start := time.Now()
	for try := 1; ; try++ {
		err := s.try(ctx, client)
		if ctx.Err() != nil {
			return
		}
		if err == nil || try >= s.Tries {
			s.note(err, true, time.Since(start))
			return
		}
		s.note(err, false, 0)
	}
}

func (s *Shorter) try(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.To+s.Path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

func (s *Shorter) note(err error, last bool, took time.Duration) {
	l := s.Log
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.Short.Done++
		l.Short.Slowest = max(l.Short.Slowest, took)
		return
	case last:
		l.Short.Failed++
	default:
		l.Short.Retried++
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		err = context.DeadlineExceeded
	}
	l.Short.Reasons[Reason(err)]++
}
