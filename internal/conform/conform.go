// SPDX-License-Identifier: Apache-2.0

// Package conform makes the checks of a conformance suite, which what stands in for
// something goes through in go test, and the real thing in a virtual machine.
package conform

import (
	"fmt"
	"io"
	"os"
	"runtime"
)

// T is what a check reports to; a *testing.T is one. Fatalf ends the check.
type T interface {
	Helper()
	Cleanup(fn func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Check is one statement about a subject, named by what it says.
type Check[S any] struct {
	Name string
	Run  func(t T, subject S)
}

// Run makes the checks one after the other, writes a line to w for each and
// more for what fails, and returns how many failed. It is for programs that run
// where there is no go test.
func Run[S any](w io.Writer, subject S, checks []Check[S]) (failed int) {
	for _, c := range checks {
		t := &plainT{}
		done := make(chan struct{})
		go func() { // so that Fatalf can end it
			defer close(done)
			defer t.cleanUp()
			c.Run(t, subject)
		}()
		<-done
		verdict := "ok  "
		if t.failed {
			verdict = "FAIL"
			failed++
		}
		fmt.Fprintf(w, "%s %s\n%s", verdict, c.Name, t.log)
	}
	return failed
}

// Main is Run for a program that does nothing else: it says on standard output how many checks
// failed, and ends the process if any has.
func Main[S any](subject S, checks []Check[S]) {
	failed := Run(os.Stdout, subject, checks)
	fmt.Printf("%d of %d checks failed\n", failed, len(checks))
	if failed > 0 {
		os.Exit(1)
	}
}

// plainT is the T of Run.
type plainT struct {
	failed   bool
	log      string
	cleanups []func()
}

func (t *plainT) Helper()           {}
func (t *plainT) Cleanup(fn func()) { t.cleanups = append(t.cleanups, fn) }

func (t *plainT) Logf(format string, args ...any) {
	t.log += "     " + fmt.Sprintf(format, args...) + "\n"
}

func (t *plainT) Errorf(format string, args ...any) {
	t.failed = true
	t.Logf(format, args...)
}

func (t *plainT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *plainT) cleanUp() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
