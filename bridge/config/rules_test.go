// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile/unitfiletest"
)

// What may not be lost is not a matter of whether the generator has run.
func TestRulesAreThoseOfTheUnitFilesWithoutTheGenerator(t *testing.T) {
	const unit = "[Service]\nExecStart=/bin/x\nFileDescriptorStoreMax=1\nFileDescriptorStorePreserve=yes\n[X-FDBridge]\n"
	root := unitfiletest.Tree(t, txtar.Parse([]byte(
		"-- etc/systemd/system/required.service --\n"+unit+"Required=yes\n"+
			"-- etc/systemd/system/left.service --\n"+unit+"Preserve=no\n"+
			"-- etc/systemd/system/early.service --\n"+unit+"Early=no\nEarly=1\n"+
			"-- etc/systemd/system/never.service --\n"+unit+"Early=yes\nEarly=no\n"+
			"-- etc/systemd/system/other.service --\n"+unit+"Early=no\nEarly=\n")))
	rules, problems := config.LoadRules(root)
	if len(problems) != 1 || !errors.Is(problems[0], generator.ErrNotRun) {
		t.Errorf("problems: %v, want ErrNotRun", problems)
	}
	if rules.Loaded {
		t.Error("the files are taken for what PID 1 has loaded")
	}
	for name, want := range map[string]struct{ required, excluded bool }{
		"required.service": {true, false}, "left.service": {false, true}, "other.service": {false, false},
	} {
		if rules.Required(name) != want.required || rules.Excluded(name) != want.excluded {
			t.Errorf("%s: Required %v, Excluded %v, want %+v", name, rules.Required(name), rules.Excluded(name), want)
		}
	}
	for name, want := range map[string]generator.Early{
		"early.service": generator.EarlyYes, "never.service": generator.EarlyNo,
		"other.service": generator.EarlySealed, "left.service": generator.EarlySealed, "unknown.service": generator.EarlySealed,
	} {
		if got := rules.Early(name); got != want {
			t.Errorf("%s: Early %v, want %v", name, got, want)
		}
	}
	if !rules.AnyRequired() {
		t.Error("nothing is required")
	}
}
