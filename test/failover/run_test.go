package failover

import (
	"strings"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	r := &Result{System: "x"}
	if r.Quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
	for i := range 30 {
		r.Took = append(r.Took, time.Duration(i+1)*time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 15, 0.9: 27, 0.99: 30, 1: 30} {
		if got := r.Quantile(q); got != want*time.Millisecond {
			t.Errorf("quantile %v: %v, want %v ms", q, got, want)
		}
	}
	var b strings.Builder
	Print(&b, []*Result{r})
	if !strings.Contains(b.String(), "x                               30       1.0      15.0      30.0      30.0      0") {
		t.Errorf("printed %s", b.String())
	}
}
