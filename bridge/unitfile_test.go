// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// The times in fdbridged.service go with those that are compiled in.
func TestTheServiceHasTimesThatFit(t *testing.T) {
	text, err := os.ReadFile("../contrib/systemd/fdbridged.service")
	if err != nil {
		t.Fatal(err)
	}
	timeOf := func(directive string) time.Duration {
		t.Helper()
		found := regexp.MustCompile(`(?m)^` + directive + `=(.*)$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("there is no %s=", directive)
		}
		d, err := time.ParseDuration(string(found[1]))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if got := timeOf("RestartMaxDelaySec"); got >= wire.RestartTimeout {
		t.Errorf("it is started again after %v, and clients wait for %v only", got, wire.RestartTimeout)
	}
	if got := timeOf("TimeoutStopSec"); got <= stopTimeout {
		t.Errorf("it is killed after %v, and deliveries may go on for %v", got, stopTimeout)
	}
}
