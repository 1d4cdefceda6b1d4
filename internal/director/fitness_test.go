package director

import (
	"strings"
	"testing"
	"time"
)

func TestFitness(t *testing.T) {
	f := fitness{interval: 50 * time.Millisecond}
	at := func(s int, c condition, want string) {
		t.Helper()
		if got := f.judge(time.Duration(s)*time.Second, c); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("at %d s %+v: %q, want %q", s, c, got, want)
		}
	}
	at(1, condition{}, "")
	at(2, condition{late: 24}, "")
	at(3, condition{late: 25}, "too little processor time: 25 of 100 ticks")
	at(4, condition{late: 25}, "too little processor time")
	at(5, condition{late: 25}, "too little processor time")
	at(6, condition{late: 25}, "too little processor time")
	at(7, condition{late: 25}, "") // it was once
	at(8, condition{late: 25, resets: 1}, "somebody keeps changing")
	at(9, condition{late: 25, resets: 1, syncd: "capture"}, "syncd: capture")
	at(12, condition{late: 25, resets: 1}, "somebody keeps changing")
	at(13, condition{late: 25, resets: 1}, "")
	at(20, condition{late: 25, resets: 1, overruns: 9}, "packets come faster")
	at(25, condition{late: 25, resets: 1, overruns: 9}, "")
	at(26, condition{late: 2, resets: 1, overruns: 9}, "") // counted anew
	at(27, condition{late: 24, resets: 1, overruns: 9}, "")
	at(28, condition{late: 25, resets: 1, overruns: 9}, "too little processor time: 25 of 100 ticks")
}
