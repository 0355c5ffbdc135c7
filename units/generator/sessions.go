// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/units/notify"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// luoSession is systemd's directive, from 262 on. Older versions log that they do
// not know it and go on; newer ones have made the sessions before fdbridge-inject
// asks for them, which then does nothing, so that the versions need not be told
// apart.
const luoSession = "LUOSession"

// sessions are the sessions of its own that a unit is to have.
type sessions struct {
	names []string
	// store says that the unit has no store that they could be in, and preserve
	// that it does not say what is to become of one when it stops.
	store, preserve bool
}

// sessionsOf reads LUOSession=, and what of it is no sense. systemd ignores names
// that are none for a session, and those that are there twice
// (config_parse_luo_sessions in src/core/load-fragment.c, systemd 262); it expands
// no specifiers in them.
func sessionsOf(s unitfile.Settings) (found sessions, problems []error) {
	if len(s.All(service, "ExecStart")) == 0 {
		return found, nil
	}
	for _, a := range s {
		if a.Section != service || a.Key != luoSession {
			continue
		}
		if a.Value == "" {
			found.names = nil
			continue
		}
		words, err := unitfile.Words(a.Value)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %s=%s is ignored: %w", a.Path, a.Line, a.Key, a.Value, err))
			continue
		}
		for _, name := range words {
			switch {
			case name == "" || strings.Contains(name, " ") || !notify.ValidName(name):
				problems = append(problems, fmt.Errorf("%s:%d: %q in %s= is ignored: it is no name for a session", a.Path, a.Line, name, a.Key))
			case !slices.Contains(found.names, name):
				found.names = append(found.names, name)
			}
		}
	}
	if len(found.names) > 0 && storeMax(s) == 0 {
		found.store = true
		_, set := s.Last(service, preserve, isPreserveMode)
		found.preserve = !set
	}
	return found, problems
}

// argument writes an argument for ExecStartPre=, see systemd.service(5).
func argument(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-"
	if strings.Trim(text, plain) == "" {
		return text
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(text) + `"`
}
