// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"strings"
	"testing"
)

func TestSessionNameIsTheUnitsOrCutWithItsHash(t *testing.T) {
	tests := []struct{ name, unit, want string }{
		{"short", "counter.service", "fdbridge.counter.service"},
		{"just fits", strings.Repeat("u", 46) + ".service", "fdbridge." + strings.Repeat("u", 46) + ".service"},
		// printf 'uuu….service' | sha256sum
		{"one too long", strings.Repeat("u", 47) + ".service", "fdbridge." + strings.Repeat("u", 37) + "~cdf6dcb830231733"},
		{"longest", strings.Repeat("u", 247) + ".service", "fdbridge." + strings.Repeat("u", 37) + "~2a814d7f593985a9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := SessionName(tt.unit)
			if got != tt.want || len(got) > maxSession {
				t.Errorf("SessionName = %q (%d bytes), want %q", got, len(got), tt.want)
			}
			if !IsSession(got) {
				t.Errorf("IsSession(%q) = false", got)
			}
		})
	}
}

func TestIsSessionKnowsOursByPrefix(t *testing.T) {
	for name, want := range map[string]bool{
		"fdbridge":          true,
		"fdbridge.a.slice":  true,
		"fdbridge-x":        false,
		"fdbridg":           false,
		"systemd":           false,
		"my.fdbridge.thing": false,
		"":                  false,
	} {
		if got := IsSession(name); got != want {
			t.Errorf("IsSession(%q) = %v", name, got)
		}
	}
}
