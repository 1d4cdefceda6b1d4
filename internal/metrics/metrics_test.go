package metrics_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"saru/internal/config"
	"saru/internal/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func scrape(t *testing.T, write func(*metrics.Sink) error) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	metrics.Handler("lb", write).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Code, w.Body.String()
}

func TestScrape(t *testing.T) {
	code, body := scrape(t, func(s *metrics.Sink) error {
		s.Flag("synced", "1 if so.", true)
		s.Gauge("lag_seconds", "How late.", 0.25, "peer", "d2")
		s.Gauge("lag_seconds", "How late.", 3, "peer", "d\xff3")
		s.Counter("drops_total", "What was dropped.", 7, "reason", `a "bad" one`)
		return nil
	})
	want := `# HELP lb_drops_total What was dropped.
# TYPE lb_drops_total counter
lb_drops_total{reason="a \"bad\" one"} 7
# HELP lb_lag_seconds How late.
# TYPE lb_lag_seconds gauge
lb_lag_seconds{peer="d2"} 0.25
lb_lag_seconds{peer="d?3"} 3
# HELP lb_synced 1 if so.
# TYPE lb_synced gauge
lb_synced 1
`
	if code != http.StatusOK || body != want {
		t.Errorf("status %d, got:\n%s\nwant:\n%s", code, body, want)
	}
}

// A scraper must not take half the numbers for all of them.
func TestScrapeFails(t *testing.T) {
	code, body := scrape(t, func(s *metrics.Sink) error {
		s.Flag("synced", "1 if so.", true)
		return errors.New("the engine is gone")
	})
	if code != http.StatusInternalServerError || !strings.Contains(body, "the engine is gone") {
		t.Errorf("got %d %q, want 500 with the reason", code, body)
	}
}

func TestServer(t *testing.T) {
	s, err := metrics.Listen("127.0.0.1:0", http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v, want nil", err)
	}
}

func TestListenSaysWhatIsWrong(t *testing.T) {
	_, err := metrics.Listen("192.0.2.1:9646", http.NotFoundHandler())
	if config.ExitStatus(err) != 2 || !strings.Contains(err.Error(), `control.metrics = "192.0.2.1:9646"`) {
		t.Errorf("got %v, want bad input that names the key and the value", err)
	}
}
