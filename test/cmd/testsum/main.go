// Command testsum reads the output of "go test -json", of one run or of
// several one after another, and prints what a person wants of it: failures
// with their output, at once and again at the end, skipped tests with the
// reason, and a closing line of totals. Its exit status is 1 if a test or a
// build failed, or if no test ran.
//
// With -again, few failures are tried once more, by that command, and those that
// are left another time: a machine that others use too may take a second from any
// test. Tests that pass then are named, with what they had said, and do not count
// as failed.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
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
	passes                  [][2]string // package and test
	skips                   []string
	failures                []failure
	unsteady                []failure // that passed when run again
	broken                  bool      // a package failed without a failed test
	failedIn                map[string]int
}

// A failure is a test that failed, or a package that did as a whole, with the
// end of what it printed.
type failure struct {
	pkg, test string
	end       []string
}

func (f failure) String() string {
	return strings.TrimSpace(f.pkg+" "+f.test) + ":\n" + strings.Join(f.end, "")
}

func newSummary(w io.Writer) *summary {
	return &summary{w: w, output: map[[2]string][]string{}, failedIn: map[string]int{}}
}

func main() {
	again := flag.String("again", "", "`command` for the shell that runs the tests matching $AGAIN in $AGAIN_IN, as \"go test -json\"")
	flag.Parse()
	s := newSummary(os.Stdout)
	err := s.read(os.Stdin)
	for round := 0; round < rounds && err == nil && *again != ""; round++ {
		err = s.again(func(tests, packages string) (io.Reader, error) { return run(*again, tests, packages) })
	}
	if err != nil {
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
		s.passes = append(s.passes, key)
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

// atEnd is how many lines of a failure are shown again at the end, where they
// are looked for.
const atEnd = 30

func (s *summary) print(key [2]string) {
	lines := s.output[key]
	for _, line := range lines {
		fmt.Fprint(s.w, line)
	}
	s.failures = append(s.failures, failure{key[0], key[1], slices.Clone(lines[max(0, len(lines)-atEnd):])})
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

func (s *summary) list(title string, failures []failure) {
	if len(failures) > 0 {
		fmt.Fprintf(s.w, "\n%s:\n", title)
	}
	for _, f := range failures {
		fmt.Fprint(s.w, f)
	}
}

func (s *summary) close() int {
	if len(s.skips) > 0 {
		fmt.Fprintf(s.w, "\nskipped:\n")
		for _, line := range s.skips {
			fmt.Fprintf(s.w, "  %s\n", line)
		}
	}
	s.list("failed once, passed when run again", s.unsteady)
	s.list("failed", s.failures)
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
