package main

import (
	"testing"

	"saru/internal/cli/clitest"
)

func TestManual(t *testing.T) { clitest.Manual(t, "../../packaging/man/saru.8", command()) }
