package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) {
	testscript.Main(testbed.Guard(m), map[string]func(){"l4fwd": main})
}

// The command line as users see it: one script for each command. UPDATE=1
// rewrites the outputs they expect.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
