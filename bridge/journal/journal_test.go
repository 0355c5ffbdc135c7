// SPDX-License-Identifier: Apache-2.0

package journal_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/journal"
)

func TestEachMessageIsOneLineWithItsPriority(t *testing.T) {
	var out strings.Builder
	log := journal.To(&out)
	log.Err("%v", errors.Join(errors.New("one"), errors.New("two")))
	log.Warning("look at %s", "this")
	log.Info("done")
	if want := "<3>one; two\n<4>look at this\n<6>done\n"; out.String() != want {
		t.Errorf("written is %q, want %q", out.String(), want)
	}
}
