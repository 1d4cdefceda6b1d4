// Command testsum reads the output of "go test -json", of one run or of
// several one after another, and prints what a person wants of it: failures
// with their output, skipped tests with the reason, and a closing line of
// totals. Its exit status is 1 if a test or a build failed, or if no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// An event is one line of cmd/test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type summary struct {
	w                       io.Writer
	output                  map[[2]string][]string
	passed, failed, skipped int
	skips                   []string
	broken                  bool // a package failed without a failed test
	failedIn                map[string]int
}

func main() {
	s := &summary{w: os.Stdout, output: map[[2]string][]string{}, failedIn: map[string]int{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	os.Exit(s.close())
}

func (s *summary) read(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(s.w, sc.Text()) // a build error, or a tool's own words
			continue
		}
		s.add(e)
	}
	return sc.Err()
}

func (s *summary) add(e event) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-fail":
		s.broken = true
		s.print(key)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e, key)
		} else {
			s.endTest(e, key)
		}
		delete(s.output, key)
	}
}

func (s *summary) endTest(e event, key [2]string) {
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		s.failed++
		s.failedIn[e.Package]++
		s.print(key)
	case "skip":
		s.skipped++
		s.skips = append(s.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(s.output[key])))
	}
}

func (s *summary) endPackage(e event, key [2]string) {
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.w, "ok    %s  %s\n", e.Package, took)
	case "fail":
		if s.failedIn[e.Package] == 0 {
			s.broken = true
			s.print(key)
		}
		fmt.Fprintf(s.w, "FAIL  %s  %s\n", e.Package, took)
		s.failedIn[e.Package] = 0
	}
}

func (s *summary) print(key [2]string) {
	for _, line := range s.output[key] {
		fmt.Fprint(s.w, line)
	}
}

// reason returns what a test said when it skipped: testing prints
// "    file_test.go:12: why" before "--- SKIP".
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "=== ") {
			continue
		}
		if _, after, ok := strings.Cut(line, ".go:"); ok {
			if _, why, ok := strings.Cut(after, ": "); ok {
				return why
			}
		}
		return line
	}
	return "no reason given"
}

func (s *summary) close() int {
	if len(s.skips) > 0 {
		fmt.Fprintf(s.w, "\nskipped:\n")
		for _, line := range s.skips {
			fmt.Fprintf(s.w, "  %s\n", line)
		}
	}
	ran := s.passed + s.failed
	fmt.Fprintf(s.w, "\n%d ran\n%d passed, %d failed, %d skipped\n", ran, s.passed, s.failed, s.skipped)
	if s.broken {
		fmt.Fprintln(s.w, "a package did not build or ended outside its tests")
	}
	if s.failed > 0 || s.broken || ran == 0 {
		return 1
	}
	return 0
}
