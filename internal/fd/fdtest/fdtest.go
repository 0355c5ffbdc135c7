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
// end, naming the stack that opened it. Call it from TestMain.
func Main(m *testing.M) {
	fd.Track()
	code := m.Run()
	for raw, stack := range fd.Open() {
		fmt.Fprintf(os.Stderr, "descriptor %d was not closed; it was opened here:\n%s\n", raw, stack)
		code = 1
	}
	os.Exit(code)
}
