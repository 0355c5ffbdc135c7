// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/units"
)

func TestPreparationIsOver(t *testing.T) {
	is := func(active string, left uint64, status string) units.Service {
		return units.Service{Active: active, Left: left, Status: status}
	}
	never, before := is("inactive", 0, ""), is("failed", 7, "Prepared before.")
	for name, c := range map[string]struct {
		before  units.Service
		seen    []units.Service // every 20 s
		summary string
		err     string // empty as long as it is not over
	}{
		"it has prepared":              {never, []units.Service{never, is("activating", 9, ""), is("activating", 9, "Prepared.")}, "Prepared.", ""},
		"something is prepared":        {is("activating", 9, "Prepared."), []units.Service{is("activating", 9, "Prepared.")}, "Prepared.", ""},
		"it has not begun yet":         {before, []units.Service{before, before}, "", ""},
		"it takes its time":            {before, []units.Service{is("activating", 9, ""), is("activating", 9, ""), is("activating", 9, "")}, "", ""},
		"it does not begin":            {before, []units.Service{before, before, before}, "", "has not begun to start within 30s, and is failed"},
		"it is ready":                  {is("active", 7, "Preserved."), []units.Service{is("active", 7, "Preserved."), is("active", 7, "Preserved."), is("active", 7, "Preserved.")}, "", "has not begun to start within 30s, and is active"},
		"it fails":                     {never, []units.Service{is("activating", 9, ""), is("failed", 9, "")}, "", "nothing is prepared"},
		"it fails when it has said so": {never, []units.Service{is("activating", 9, ""), is("failed", 9, "Prepared.")}, "", "nothing is prepared"},
		"it fails at once":             {before, []units.Service{is("failed", 9, "Prepared.")}, "", "nothing is prepared"},
	} {
		t.Run(name, func(t *testing.T) {
			p := preparation{before: c.before}
			for i, s := range c.seen {
				over := p.over(s, time.Duration(i)*20*time.Second)
				if last := i == len(c.seen)-1; over != (last && c.summary+c.err != "") {
					t.Errorf("after %+v it is over: %v", c.seen[:i+1], over)
				}
			}
			said := ""
			if p.err != nil {
				said = p.err.Error()
			}
			if p.summary != c.summary || (said != "") != (c.err != "") || !strings.Contains(said, c.err) {
				t.Errorf("it says %q, %q, want %q, %q", p.summary, said, c.summary, c.err)
			}
		})
	}
}
