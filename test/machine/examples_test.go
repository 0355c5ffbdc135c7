// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"testing"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestTheExamplesBuildWithoutAWarning(t *testing.T) {
	if err := Examples(t.Context(), "../..", t.TempDir()); err != nil {
		t.Fatal(err)
	}
}
