// SPDX-License-Identifier: Apache-2.0

package conform_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/conform"
)

func TestRunReportsWhatFailedAndGoesOn(t *testing.T) {
	var cleaned []string
	note := func(s string) func() { return func() { cleaned = append(cleaned, s) } }
	var out strings.Builder
	failed := conform.Run(&out, "it", []conform.Check[string]{
		{"good", func(t conform.T, _ string) { t.Logf("said") }},
		{"wrong", func(t conform.T, _ string) { t.Errorf("one"); t.Errorf("two") }},
		{"fatal", func(t conform.T, _ string) {
			t.Cleanup(note("first"))
			t.Cleanup(note("second"))
			t.Fatalf("three")
			t.Errorf("never")
		}},
		{"gets the subject", func(t conform.T, subject string) { t.Logf("%s", subject) }},
	})
	want := "ok   good\n     said\nFAIL wrong\n     one\n     two\nFAIL fatal\n     three\nok   gets the subject\n     it\n"
	if diff := cmp.Diff(want, out.String()); diff != "" || failed != 2 {
		t.Errorf("%d failed, want 2; output (-want +got):\n%s", failed, diff)
	}
	if diff := cmp.Diff([]string{"second", "first"}, cleaned); diff != "" {
		t.Errorf("cleanups (-want +got):\n%s", diff)
	}
}
