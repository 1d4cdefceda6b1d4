package director

import (
	"strings"
	"testing"
	"time"
)

func TestFitness(t *testing.T) {
	var f fitness
	at := func(s int, c condition, want string) {
		t.Helper()
		if got := f.judge(time.Duration(s)*time.Second, c); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("at %d s %+v: %q, want %q", s, c, got, want)
		}
	}
	at(1, condition{}, "")
	at(2, condition{late: 3}, "too little processor time")
	at(6, condition{late: 3}, "too little processor time")
	at(7, condition{late: 3}, "") // it was once
	at(8, condition{late: 3, resets: 1}, "somebody keeps changing")
	at(9, condition{late: 4, resets: 1, syncd: "capture"}, "syncd: capture")
	at(12, condition{late: 4, resets: 1}, "somebody keeps changing")
	at(13, condition{late: 4, resets: 1}, "too little")
	at(14, condition{late: 4, resets: 1}, "")
	at(20, condition{late: 4, resets: 1, overruns: 9}, "packets come faster")
	at(25, condition{late: 4, resets: 1, overruns: 9}, "")
}
