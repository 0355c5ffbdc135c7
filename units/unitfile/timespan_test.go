// SPDX-License-Identifier: Apache-2.0

package unitfile_test

import (
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

func TestParseTimeSpan(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"0": 0, "90": 90 * time.Second, " 90 ": 90 * time.Second, "90s": 90 * time.Second, "90 sec": 90 * time.Second,
		"1min 30s": 90 * time.Second, "1min30": 90 * time.Second, "2h": 2 * time.Hour, "1d": 24 * time.Hour,
		"1week 1day": 8 * 24 * time.Hour, "20ms": 20 * time.Millisecond, "7us": 7 * time.Microsecond,
		"infinity": unitfile.Infinity, "9223372036s": 9223372036 * time.Second,
	} {
		if got, ok := unitfile.ParseTimeSpan(value); got != want || !ok {
			t.Errorf("ParseTimeSpan(%q) = %v, %v, want %v", value, got, ok, want)
		}
	}
	for _, value := range []string{
		"", " ", "s", "-1", "1.5s", "1y", "1 fortnight", "infinity 1s", "99999999999999999999", "9223372037s", "9223372036s 1s", "106752d",
	} {
		if got, ok := unitfile.ParseTimeSpan(value); ok {
			t.Errorf("ParseTimeSpan(%q) = %v, want nothing", value, got)
		}
	}
}
