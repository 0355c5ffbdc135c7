// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

func FuzzExclude(f *testing.F) {
	f.Add(`a.service b@*.service '[!c]?.service'`, "a.service")
	f.Add(`a\x2d.service [ []] [^a-`, `a\x2d.service`)
	f.Add(`"a.service`, "[")
	f.Fuzz(func(t *testing.T, value, unit string) {
		c := &Config{}
		err := c.addExclude(value)
		if words := strings.Fields(value); len(c.exclude) > len(words)+1 {
			t.Errorf("%q became %q", value, c.exclude)
		}
		excluded := c.Excluded(unit)
		if err == nil && unitfile.ValidName(unit) && slices.Contains(strings.Fields(value), unit) && !excluded && !strings.ContainsAny(value, `"'`) {
			t.Errorf("%q does not exclude %q", value, unit)
		}
		if len(c.exclude) == 0 && excluded && !(&Config{}).Excluded(unit) {
			t.Errorf("%q excludes %q", value, unit)
		}
	})
}
