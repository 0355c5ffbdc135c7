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
			"-- etc/systemd/system/other.service --\n"+unit)))
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
	if !rules.AnyRequired() {
		t.Error("nothing is required")
	}
}
