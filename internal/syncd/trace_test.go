package syncd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// A streamed is the answer to one who traces.
type streamed struct {
	header http.Header
	code   int
	mu     sync.Mutex
	body   bytes.Buffer
	stuck  chan struct{} // writes wait for it
}

func (s *streamed) Header() http.Header { return s.header }
func (s *streamed) WriteHeader(c int)   { s.code = c }
func (s *streamed) Flush()              {}

func (s *streamed) Write(p []byte) (int, error) {
	if s.stuck != nil {
		<-s.stuck
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.Write(p)
}

func (s *streamed) events(t *testing.T) (out []TraceEvent) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	dec := json.NewDecoder(bytes.NewReader(s.body.Bytes()))
	for {
		var ev TraceEvent
		if err := dec.Decode(&ev); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, ev)
	}
}

// trace looks at n's updates until stop is called.
func trace(n *node, query string, s *streamed) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.header = http.Header{}
	go func() {
		defer close(done)
		n.Handler().ServeHTTP(s, httptest.NewRequestWithContext(ctx, "GET", "/trace?"+query, nil))
	}()
	synctest.Wait()
	return func() { cancel(); <-done }
}

func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		var at, bt, only streamed
		stops := []func(){trace(a, "", &at), trace(b, "", &bt), trace(b, "path=injected&state=fin_wait", &only)}
		c := tcp(1, established, 900*time.Second)
		tell := func() { a.capture(c); time.Sleep(20 * time.Millisecond) }
		tell()
		tell()
		c.State, c.Timeout = finWait, 120*time.Second
		tell()
		a.queued(a.table.Delete(c.Key, a.clock.Next(), conntable.ToPeers))
		time.Sleep(20 * time.Millisecond)
		for _, x := range []struct {
			of   *streamed
			want string
		}{
			{&at, "captured new d1, sent state d1, captured refresh d1, captured change d1, sent state d1, sent close d1"},
			{&bt, "received new d1, injected state d1, received change d1, injected state d1, received close d1, injected close d1"},
			{&only, "injected state d1, injected close d1"},
		} {
			var got []string
			for _, ev := range x.of.events(t) {
				got = append(got, string(ev.Path)+" "+ev.What+" "+ev.Node)
				if ev.Client != c.Client.String() || ev.Clock == 0 {
					t.Errorf("%+v", ev.Conn)
				}
			}
			if s := strings.Join(got, ", "); s != x.want {
				t.Errorf(" got %s\nwant %s", s, x.want)
			}
		}
		var line strings.Builder
		must(t, at.events(t)[0].Print(&line))
		if !strings.Contains(line.String(), " captured     new     d1         TCP 15:00  ESTABLISHED "+c.Client.String()) {
			t.Errorf("%q", line.String())
		}
		for _, stop := range stops {
			stop()
		}
		if a.trace.on() || b.trace.on() {
			t.Error("somebody is taken to look still")
		}
		var more streamed
		for query, want := range map[string]int{"path=wire": http.StatusBadRequest, "proto=ipx": http.StatusBadRequest} {
			trace(a, query, &more)()
			if more.code != want {
				t.Errorf("%s: status %d, want %d", query, more.code, want)
			}
		}
	})
}

// Who is too slow loses events, and is told how many; nobody waits for him.
func TestSlowTracerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, peertest.New(2), 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		slow := streamed{stuck: make(chan struct{})}
		stop := trace(a, "path=captured", &slow)
		const many = 3 * traceBuffer
		for i := range many {
			a.capture(tcp(i, established, 900*time.Second))
			if i == 0 {
				synctest.Wait() // it is stuck with the first
			}
		}
		close(slow.stuck)
		synctest.Wait()
		a.capture(tcp(0, established, 900*time.Second))
		synctest.Wait()
		seen, dropped := 0, uint64(0)
		for _, ev := range slow.events(t) {
			dropped += ev.Dropped
			if ev.Conn != nil && ev.Client != "" {
				seen++
			}
		}
		if seen < traceBuffer || dropped == 0 || uint64(seen)+dropped != many+1 {
			t.Errorf("%d seen and %d told to be dropped of %d", seen, dropped, many+1)
		}
		stop()
		var all []func()
		for range maxTracers {
			all = append(all, trace(a, "", &streamed{}))
		}
		var more streamed
		trace(a, "", &more)()
		if more.code != http.StatusTooManyRequests {
			t.Errorf("one too many: status %d", more.code)
		}
		for _, stop := range all {
			stop()
		}
	})
}
