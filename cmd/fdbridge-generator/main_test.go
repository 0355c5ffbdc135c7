// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain runs the command itself when a script calls it, on the system that
// the script made in its work directory.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fdbridge-generator": func() { os.Exit(run(os.Getenv("WORK"), os.Args[1:])) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true})
}
