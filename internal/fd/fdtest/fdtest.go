// SPDX-License-Identifier: Apache-2.0

// Package fdtest finds descriptors that a package's tests left open.
package fdtest

import (
	"fmt"
	"os"
	"testing"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Main runs the tests and fails them when a descriptor is still owned at the
// end, or was forgotten by its owner, naming the stack that opened it. Call it from TestMain.
func Main(m *testing.M) {
	fd.Track()
	code := m.Run()
	for _, stack := range fd.Open() {
		fmt.Fprintf(os.Stderr, "a descriptor was not closed by its owner; it was opened here:\n%s\n", stack)
		code = 1
	}
	os.Exit(code)
}
