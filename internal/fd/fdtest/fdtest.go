// SPDX-License-Identifier: Apache-2.0

// Package fdtest is for tests of what has descriptors, and finds those that they left open.
package fdtest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Memfd returns an empty memfd, which is closed at the end of the test if it was not before.
func Memfd(t testing.TB) *fd.FD {
	t.Helper()
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := fd.New(raw)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// MemfdWith returns one with text, its position at the end.
func MemfdWith(t testing.TB, text string) *fd.FD {
	t.Helper()
	f := Memfd(t)
	if err := f.Do(func(raw int) error {
		_, err := unix.Write(raw, []byte(text))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return f
}

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
