// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/unitfile"
	"github.com/fdbridge/fdbridge/units/unitfile/unitfiletest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// asked are the units that the tests ask about.
func asked() []string {
	return []string{
		"a.service", "b.service", "b@.service", "b@1.service", `b\x2dc.service`,
		"systemd-journald.service", "systemd-journald@ns.service", "systemd-journald@.service", "systemd-udevd.service",
	}
}

const ownDefault = "systemd-journald.service systemd-journald@ns.service systemd-journald@.service systemd-udevd.service"

func TestExclude(t *testing.T) {
	for name, test := range map[string]struct {
		tree     string
		excluded string
		problems []string
	}{
		"no file": {excluded: ownDefault},
		"never set": {
			tree:     "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\n#Exclude=a.service\n",
			excluded: ownDefault,
		},
		"a value replaces the default": {
			tree:     "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=a.service\n",
			excluded: "a.service",
		},
		"an empty value excludes nothing": {
			tree: "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=\n",
		},
		"values add up over lines and files until an empty one": {
			tree: "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=b@1.service\nExclude=\nExclude=a.service  'b@.service'\n" +
				"-- usr/lib/fdbridge/fdbridge.conf.d/10.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: "a.service b.service b@.service",
		},
		"wildcards": {
			tree:     "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=b@*.service [!b].service b\\x2d?.service\n",
			excluded: `a.service b@.service b@1.service b\x2dc.service`,
		},
		"etc hides run and usr": {
			tree: "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=a.service\n" +
				"-- run/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: "a.service",
		},
		"usr alone": {
			tree:     "-- usr/lib/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: "b.service",
		},
		"the main file masked": {
			tree: "-- etc/fdbridge/fdbridge.conf -> /dev/null --\n" +
				"-- usr/lib/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: ownDefault,
		},
		"drop-ins are sorted over all directories and hide those of their name": {
			tree: "-- etc/fdbridge/fdbridge.conf.d/20.conf --\n[Bridge]\nExclude=\n" +
				"-- run/fdbridge/fdbridge.conf.d/30.conf --\n[Bridge]\nExclude=a.service\n" +
				"-- usr/local/lib/fdbridge/fdbridge.conf.d/10.conf --\n[Bridge]\nExclude=b.service\n" +
				"-- usr/local/lib/fdbridge/fdbridge.conf.d/25.conf --\n[Bridge]\nExclude=b@1.service\n" +
				"-- usr/lib/fdbridge/fdbridge.conf.d/30.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: "a.service b@1.service",
		},
		"what is unknown is named and ignored": {
			tree: "-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nInclude=a.service\nX-Mine=1\n[Other]\nExclude=a.service\nB=1\n[X-Mine]\nA=1\n" +
				"[Bridge]\nExclude=a.service sshd b.socket b[\nExclude='b.service\n" +
				"-- etc/fdbridge/fdbridge.conf.d/a.conf --\n[Bridge\n" +
				"-- etc/fdbridge/fdbridge.conf.d/b.conf --\n[Bridge]\nExclude=b.service\n",
			excluded: "a.service b.service",
			problems: []string{
				"/etc/fdbridge/fdbridge.conf.d/a.conf:1: the section header does not end in ']'",
				"/etc/fdbridge/fdbridge.conf:2: the setting Include= is unknown and ignored",
				"/etc/fdbridge/fdbridge.conf:5: the section [Other] is unknown and ignored",
				"/etc/fdbridge/fdbridge.conf:10: Exclude= names what is no service and ignored: sshd b.socket b[",
				"/etc/fdbridge/fdbridge.conf:11: Exclude='b.service is ignored: a quote is not closed",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, problems := config.Load(unitfiletest.Tree(t, txtar.Parse([]byte(test.tree))))
			excluded := slices.DeleteFunc(asked(), func(unit string) bool { return !c.Excluded(unit) })
			if diff := cmp.Diff(test.excluded, strings.Join(excluded, " ")); diff != "" {
				t.Errorf("excluded: %s", diff)
			}
			var texts []string
			for _, problem := range problems {
				texts = append(texts, problem.Error())
			}
			if diff := cmp.Diff(test.problems, texts); diff != "" {
				t.Errorf("problems: %s", diff)
			}
		})
	}
}

func TestOwnUnitsAreAlwaysExcluded(t *testing.T) {
	c, _ := config.Load(unitfiletest.Tree(t, txtar.Parse([]byte("-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=\n"))))
	for _, unit := range []string{"fdbridged.service", "fdbridge-preserve.service"} {
		if !c.Excluded(unit) {
			t.Errorf("%s is not excluded", unit)
		}
	}
}

func TestTimeSpans(t *testing.T) {
	const problem = "etc/fdbridge/fdbridge.conf:2: "
	for text, test := range map[string]struct {
		preserve, hold, prepare time.Duration
		problem                 string
	}{
		"":                         {preserve: time.Minute, hold: unitfile.Infinity},
		"PreserveTimeoutSec=2min":  {preserve: 2 * time.Minute, hold: unitfile.Infinity},
		"PreserveTimeoutSec=":      {preserve: time.Minute, hold: unitfile.Infinity},
		"HoldTimeoutSec=1d":        {preserve: time.Minute, hold: 24 * time.Hour},
		"PreserveTimeoutSec=0":     {preserve: time.Minute, hold: unitfile.Infinity, problem: "PreserveTimeoutSec=0 is ignored"},
		"HoldTimeoutSec=for a bit": {preserve: time.Minute, hold: unitfile.Infinity, problem: "HoldTimeoutSec=for a bit is ignored"},
		"PrepareTimeoutSec=1h":     {preserve: time.Minute, hold: unitfile.Infinity, prepare: time.Hour},
		"OnLoss=panic":             {preserve: time.Minute, hold: unitfile.Infinity, problem: "OnLoss=panic is ignored"},
	} {
		root := unitfiletest.Tree(t, txtar.Parse([]byte("-- etc/fdbridge/fdbridge.conf --\n[Bridge]\n"+text+"\n")))
		c, problems := config.Load(root)
		if test.prepare == 0 {
			test.prepare = 10 * time.Minute
		}
		if c.PrepareTimeout != test.prepare || c.PreserveTimeout != test.preserve || c.HoldTimeout != test.hold || c.Rollback {
			t.Errorf("%q: %+v", text, c)
		}
		if test.problem == "" && len(problems) > 0 ||
			test.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].Error(), problem+test.problem)) {
			t.Errorf("%q: problems %v, want %q", text, problems, test.problem)
		}
	}
}
