package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const (
	// few is how many tests are tried again: when more fail, something is broken.
	few = 8
	// rounds is how often they are. On a machine that has half of its time taken
	// from it, one of eight may need two.
	rounds = 2
)

// again runs what failed once more. Those tests that passed then, and in no
// place failed, count as passed.
func (s *summary) again(run func(tests, packages string) (io.Reader, error)) error {
	var tests, packages []string
	for _, f := range s.failures {
		test, _, _ := strings.Cut(f.test, "/")
		if tests = append(tests, test); !slices.Contains(packages, f.pkg) {
			packages = append(packages, f.pkg)
		}
	}
	slices.Sort(tests)
	tests = slices.Compact(tests)
	if s.broken || len(tests) == 0 || len(tests) > few {
		return nil
	}
	fmt.Fprintf(s.w, "\nonce more: %s of %s\n", strings.Join(tests, ", "), strings.Join(packages, ", "))
	out, err := run("^("+strings.Join(tests, "|")+")$", strings.Join(packages, " "))
	if err != nil {
		return fmt.Errorf("run again: %w", err)
	}
	second := newSummary(s.w)
	if err := second.read(out); err != nil {
		return err
	}
	if second.broken {
		return nil
	}
	s.failures = slices.DeleteFunc(s.failures, func(f failure) bool {
		failed := slices.ContainsFunc(second.failures, func(g failure) bool { return g.pkg == f.pkg && g.test == f.test })
		passed := !failed && slices.Contains(second.passes, [2]string{f.pkg, f.test})
		if passed {
			s.unsteady = append(s.unsteady, f)
			s.failed--
			s.passed++
		}
		return passed
	})
	return nil
}

// run is again's for real. The command's status says no more than its output.
func run(command, tests, packages string) (io.Reader, error) {
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), "AGAIN="+tests, "AGAIN_IN="+packages)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if _, exited := err.(*exec.ExitError); exited {
		err = nil
	}
	return bytes.NewReader(out), err
}
