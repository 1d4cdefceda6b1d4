package syncd

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"saru/internal/metrics"
	"saru/syncproto/peer/peertest"
)

// The metrics are as Prometheus would have them, legacy directors and a peer
// included (promtool check metrics).
func TestMetricsLint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(1)
		a, _, _ := startBridged(t, network, 1, newFakeKernel())
		start(t, network, 2, newFakeKernel())
		time.Sleep(20 * time.Second)
		w := httptest.NewRecorder()
		metrics.Handler("syncd", a.Scrape).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		problems, err := promlint.New(w.Body).Lint()
		must(t, err)
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	})
}
