// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"os"
	"testing"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestTheExamplesBuildWithoutAWarning(t *testing.T) {
	dir, err := Examples(t.Context(), "../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
