// Package clitest holds what both daemons' tests ask of their command lines.
package clitest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// ours reports whether a command is the program's own, and not cobra's.
func ours(c *cobra.Command) bool {
	return !c.Hidden && !slices.Contains([]string{"completion", "help"}, c.Name())
}

// Manual compares a manual page with the command line: it names each command
// and each flag, and no flag that there is not.
func Manual(t *testing.T, page string, root *cobra.Command) {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	_, commands, ok := strings.Cut(text, ".SH COMMANDS")
	if !ok {
		t.Fatalf("%s has no section COMMANDS", page)
	}
	flags := map[string]bool{"help": true, "version": true}
	note := func(usages string) {
		for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z_]+)`).FindAllStringSubmatch(usages, -1) {
			flags[m[1]] = true
		}
	}
	note(root.Flags().FlagUsages())
	note(root.PersistentFlags().FlagUsages())
	for _, c := range root.Commands() {
		if !ours(c) {
			continue
		}
		if !regexp.MustCompile(`(?m)^\.TP\n\.B[RI]? ` + c.Name() + `\b`).MatchString(commands) {
			t.Errorf("%s does not say what %q is", page, c.Name())
		}
		note(c.Flags().FlagUsages())
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile(`\\-\\-([a-z_]+)`).FindAllStringSubmatch(text, -1) {
		named[m[1]] = true
		if !flags[m[1]] {
			t.Errorf("%s names --%s, which there is not", page, m[1])
		}
	}
	for f := range flags {
		if !named[f] {
			t.Errorf("%s does not name --%s", page, f)
		}
	}
}
