package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Test builds the tests of a package of this module, runs them in a guest with
// the arguments given ("-test.run=TestX", "-test.short") and reports each of
// its tests as a subtest of t, skipped ones with their reason. The tests run in
// their package's folder, as under go test. It fails when the guest does, and
// when no test ran at all.
//
// Output comes to t's log when something failed or with -v, and live to
// c.Stdout when that is set. The guest's deadline is t's when c has none.
func Test(t *testing.T, c Config, pkg string, args ...string) {
	t.Helper()
	ctx := t.Context()
	binary := filepath.Join(t.TempDir(), "guest.test")
	dir, err := buildTest(ctx, pkg, binary)
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir == "" {
		c.Dir = dir
	}
	var output bytes.Buffer
	c.Stdout = tee(&output, c.Stdout)
	c.Stderr = tee(&output, c.Stderr)
	code, err := Run(ctx, c, append([]string{binary, "-test.v"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, output.String())
	}
	results := parseResults(output.String())
	for _, r := range results {
		t.Run(r.name, r.report)
	}
	switch {
	case code != 0 && !t.Failed():
		t.Errorf("%s in the guest: exit status %d\n%s", pkg, code, output.String())
	case len(results) == 0:
		t.Errorf("%s in the guest: no test ran with %q\n%s", pkg, args, output.String())
	}
}

// tee returns a writer for both; writes to both come from one goroutine.
func tee(buf *bytes.Buffer, live io.Writer) io.Writer {
	if live == nil {
		return buf
	}
	return io.MultiWriter(buf, live)
}

// buildTest compiles a package's tests, statically, and returns its folder.
func buildTest(ctx context.Context, pkg, binary string) (dir string, err error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w: %s", pkg, err, out)
	}
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("package %s has no tests", pkg)
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		return "", fmt.Errorf("folder of %s: %w", pkg, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// result is one top-level test of the guest.
type result struct {
	name   string
	status string // PASS, FAIL, SKIP
	text   string // what was printed from its start to its end
}

var (
	startLine  = regexp.MustCompile(`^=== RUN +([^/\s]+)$`)
	resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): ([^/\s]+) \(`)
)

// parseResults reads what go test -v prints. A test that started and never
// ended, because the program died in it, has failed.
func parseResults(output string) []result {
	var results []result
	open := -1
	for line := range strings.Lines(output) {
		trimmed := strings.TrimRight(line, "\r\n")
		if m := startLine.FindStringSubmatch(trimmed); m != nil {
			open = len(results)
			results = append(results, result{name: m[1], status: "FAIL"})
		}
		if m := resultLine.FindStringSubmatch(trimmed); m != nil {
			for i := range results {
				if results[i].name == m[2] {
					results[i].status, open = m[1], i
				}
			}
		}
		if open >= 0 {
			results[open].text += line
		}
	}
	return results
}

func (r result) report(t *testing.T) {
	switch r.status {
	case "SKIP":
		t.Skip("in the guest:\n" + r.text)
	case "FAIL":
		t.Error("in the guest:\n" + r.text)
	default:
		t.Log("in the guest:\n" + r.text)
	}
}

// TestKernels are the series that tests shall run on: those in the variable
// SARU_LAB_KERNELS, separated by commas, else 6.1.
func TestKernels() []string {
	if list := os.Getenv("SARU_LAB_KERNELS"); list != "" {
		return strings.Split(list, ",")
	}
	return []string{"6.1"}
}
