// SPDX-License-Identifier: Apache-2.0

package sessiontest_test

import (
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestFakeConforms(t *testing.T) {
	f := newFake(t)
	run := func(part string, checks []sessiontest.Check) {
		for _, c := range checks {
			t.Run(part+"/"+c.Name, func(t *testing.T) { c.Run(t, f) })
		}
	}
	run("before", sessiontest.Before())
	held := sessiontest.Prepare(t, f)
	kexec(t, f, held...)
	run("after", sessiontest.After())
	run("before again", sessiontest.Before())
}

// What the Fake learns to do belongs into Before.
func TestFakeCannotPassTheChecksForTheRealKernel(t *testing.T) {
	checks := sessiontest.Real()
	var out strings.Builder
	if failed := conform.Run(&out, session.Kernel(newFake(t)), checks); failed != len(checks) {
		t.Errorf("%d of %d checks failed:\n%s", failed, len(checks), out.String())
	}
}

// newFake returns a Fake that the end of the test closes.
func newFake(t testing.TB) *sessiontest.Fake {
	t.Helper()
	f, err := sessiontest.NewFake()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// kexec does what a kexec does to the kernel and to a process.
func kexec(t *testing.T, f *sessiontest.Fake, held ...*session.Session) {
	t.Helper()
	if err := f.Kexec(); err != nil {
		t.Fatal(err)
	}
	for _, s := range held {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
