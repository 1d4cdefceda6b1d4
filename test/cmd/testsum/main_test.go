package main

import (
	"io"
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
		{"fail is told again behind the skipped", `{"Action":"output","Package":"p","Test":"A","Output":"why it failed\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"B"}`, 1, []string{"p B: no reason given\n\nfailed:\np A:\nwhy it failed\n"}},
		{"panic outside a test", `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}`, 1, []string{"panic: boom", "1 passed, 0 failed"}},
		{"build error", "x.go:1: no\n" + `{"Action":"build-fail"}`, 1, []string{"x.go:1: no"}},
		{"nothing ran", "", 1, []string{"0 ran"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
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

// Who passes when run again passes, though another does not; who is left is run
// another time, alone.
func TestAgainAndAgain(t *testing.T) {
	var out strings.Builder
	s := newSummary(&out)
	event := func(action, test string) string {
		return `{"Action":"` + action + `","Package":"p","Test":"` + test + `"}` + "\n"
	}
	if err := s.read(strings.NewReader(event("fail", "A") + event("fail", "B"))); err != nil {
		t.Fatal(err)
	}
	for _, round := range []struct{ run, said string }{
		{"^(A|B)$", event("pass", "A") + event("fail", "B")},
		{"^(B)$", event("pass", "B")},
	} {
		err := s.again(func(tests, _ string) (io.Reader, error) {
			if tests != round.run {
				t.Errorf("runs %s again, want %s", tests, round.run)
			}
			return strings.NewReader(round.said), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if status := s.close(); status != 0 || !strings.Contains(out.String(), "2 passed, 0 failed") {
		t.Errorf("status %d, with\n%s", status, out.String())
	}
}

// What fails twice, or was not tried again, has failed.
func TestAgain(t *testing.T) {
	const (
		failed = `{"Action":"output","Package":"p","Test":"A/b","Output":"why it failed\n"}
{"Action":"fail","Package":"p","Test":"A/b"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`
		passes = `{"Action":"pass","Package":"p","Test":"A/b"}
{"Action":"pass","Package":"p","Test":"A"}
`
	)
	many := ""
	for _, test := range []string{"B", "C", "D", "E", "F", "G", "H", "I"} {
		many += `{"Action":"fail","Package":"q","Test":"` + test + `"}` + "\n"
	}
	for _, tc := range []struct {
		name, first, second string
		status              int
		want                string
	}{
		{"passes", failed, passes, 0, "failed once, passed when run again:\np A/b:\nwhy it failed\np A:\n\n2 ran\n2 passed, 0 failed"},
		{"fails again", failed, failed, 1, "0 passed, 2 failed"},
		{"passes here, fails there", failed, passes + failed, 1, "0 passed, 2 failed"},
		{"is not run again", failed, `{"Action":"skip","Package":"p","Test":"A"}`, 1, "0 passed, 2 failed"},
		{"its subtest is not run again", failed, `{"Action":"pass","Package":"p","Test":"A"}`, 1, "1 passed, 1 failed"},
		{"many fail", failed + "\n" + many, passes, 1, "0 passed, 10 failed"},
		{"does not build", failed + "\n" + `{"Action":"build-fail"}`, passes, 1, "0 passed, 2 failed"},
		{"does not build again", failed, passes + `{"Action":"build-fail"}`, 1, "0 passed, 2 failed"},
		{"nothing failed", passes, "", 0, "2 passed, 0 failed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
			if err := s.read(strings.NewReader(tc.first)); err != nil {
				t.Fatal(err)
			}
			err := s.again(func(tests, packages string) (io.Reader, error) {
				if tests != "^(A)$" || packages != "p" {
					t.Errorf("runs %s of %s again", tests, packages)
				}
				return strings.NewReader(tc.second), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.close(); got != tc.status || !strings.Contains(out.String(), tc.want) {
				t.Errorf("status %d, want %d, with %q; got\n%s", got, tc.status, tc.want, out.String())
			}
		})
	}
}
