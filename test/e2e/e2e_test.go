// Package e2e holds the promise as a test: the demonstration in its brief
// form, on a kernel with IPVS.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"saru/test/demo"
	"saru/test/lab"
)

// TestMain lets the test binary be a client's process too.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "opener" {
		rate, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = openerMain(os.Args[2], rate, os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "client" {
		if err := demo.ClientMain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// binaries are what "make build" made.
func binaries(t *testing.T) demo.Binaries {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := demo.Binaries{Saru: filepath.Join(bin, "saru"), Syncd: filepath.Join(bin, "syncd"), Client: []string{self, "client"}}
	for _, path := range []string{b.Saru, b.Syncd} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v; run 'make build' first", err)
		}
	}
	return b
}

// Each director loses its power once: every flow that was established lives on.
func TestFlowsOutliveEveryDirector(t *testing.T) { keeps(t, demo.Brief()) }

// Each director is drained and restarted, one after another, under load.
func TestFlowsOutliveARollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five minutes under emulation")
	}
	keeps(t, demo.Rolling())
}

func keeps(t *testing.T, plan demo.Plan) {
	t.Helper()
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	if !lab.HasIPVS() {
		t.Skip("this kernel has no IPVS; 'make e2e' runs this test in a guest")
	}
	dir := os.Getenv("SARU_LAB_OUT")
	if dir == "" {
		dir = t.TempDir()
	}
	work, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	report, err := demo.Run(t.Context(), plan, binaries(t), work, t.Output())
	if err != nil {
		demo.Keep(work, dir)
		t.Fatal(err)
	}
	report.Print(t.Output())
	if err := report.Err(); err != nil {
		demo.Keep(work, dir)
		t.Errorf("%v; logs and tables are in %s", err, dir)
	}
}
