package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		status   int
		want     []string
	}{
		{"pass and skip", `{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:3: this kernel has no IPVS\n"}
{"Action":"output","Package":"p","Test":"A","Output":"--- SKIP: A\n"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.5}`, 0, []string{"p A: this kernel has no IPVS", "1 passed, 0 failed, 1 skipped", "ok    p  1.5s"}},
		{"fail shows output", `{"Action":"output","Package":"p","Test":"A","Output":"why it failed\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 1, []string{"why it failed", "0 passed, 1 failed"}},
		{"panic outside a test", `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}`, 1, []string{"panic: boom", "1 passed, 0 failed"}},
		{"build error", "x.go:1: no\n" + `{"Action":"build-fail"}`, 1, []string{"x.go:1: no"}},
		{"nothing ran", "", 1, []string{"0 ran"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := &summary{w: &out, output: map[[2]string][]string{}, failedIn: map[string]int{}}
			if err := s.read(strings.NewReader(tc.in)); err != nil {
				t.Fatal(err)
			}
			if got := s.close(); got != tc.status {
				t.Errorf("exit status %d, want %d", got, tc.status)
			}
			for _, w := range tc.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("output lacks %q:\n%s", w, out.String())
				}
			}
		})
	}
}
