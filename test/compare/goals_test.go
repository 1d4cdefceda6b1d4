package compare

import "testing"

func TestGoals(t *testing.T) {
	good := Latency{N: 100, P99: 49.9, Max: 80}
	for name, c := range map[string]struct {
		r    Result
		miss bool
	}{
		"all within":               {r: Result{Way: Tap, Clock: Virtual, Quiet: good, Busy: good}},
		"late beside a crowd":      {r: Result{Way: Tap, Clock: Virtual, Quiet: good, Busy: good, Crowd: Latency{N: 100, P99: 50.1}}, miss: true},
		"one never came":           {r: Result{Way: Module, Clock: Virtual, Quiet: Latency{N: 100, Missing: 1}}, miss: true},
		"the machine's clock":      {r: Result{Way: Tap, Clock: Real, Quiet: Latency{N: 100, P99: 200}}},
		"the kernel's own threads": {r: Result{Way: KernelTuned, Clock: Virtual, Quiet: Latency{N: 15, P99: 2000}}},
	} {
		if err := c.r.Goals(); (err != nil) != c.miss {
			t.Errorf("%s: %v", name, err)
		}
	}
}
