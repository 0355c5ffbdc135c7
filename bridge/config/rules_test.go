// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
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
	if facts, loaded := rules.Facts("required.service"); loaded || facts.Fragment == "" {
		t.Errorf("the files are taken for what PID 1 has loaded: %v, %+v", loaded, facts)
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

// Who masks fdbridged wants to be left alone, and to have no live update called off.
func TestWithFdbridgedMaskedAllUnitsAreLeftAlone(t *testing.T) {
	root := unitfiletest.Tree(t, txtar.Parse([]byte("-- dev/liveupdate --\n-- run/systemd/generator/none --\n"+
		"-- etc/systemd/system/fdbridged.service --\n-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nOnLoss=rollback\n"+
		"-- etc/systemd/system/required.service --\n[Service]\nExecStart=/bin/x\nFileDescriptorStoreMax=1\n"+
		"FileDescriptorStorePreserve=yes\n[X-FDBridge]\nRequired=yes\n")))
	for _, ran := range []bool{false, true} {
		if ran {
			c, _ := config.Load(root)
			_, err := generator.Run(generator.Options{
				Root: root, Dir: filepath.Join(root, generator.Dir), Path: unitfile.SearchPath("", false),
				Exclude: func() (func(string) bool, []error) { return c.Excluded, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		rules, problems := config.LoadRules(root)
		said := errors.Join(problems...)
		if !strings.Contains(fmt.Sprint(said), "fdbridged.service is masked: fdbridge carries no fd store") || errors.Is(said, generator.ErrNotRun) == ran {
			t.Errorf("generator run %v: problems: %v", ran, problems)
		}
		_, loaded := rules.Facts("required.service")
		if !rules.Register.Masked() || loaded || !rules.Excluded("required.service") || rules.Required("required.service") || rules.AnyRequired() {
			t.Errorf("generator run %v: masked %v, loaded %v, excluded %v, required %v, any required %v", ran, rules.Register.Masked(), loaded,
				rules.Excluded("required.service"), rules.Required("required.service"), rules.AnyRequired())
		}
	}
}

// Who pins and serves units leaves the same ones alone as who preserves them.
func TestExcludedIsTheSameForWhoRunsOn(t *testing.T) {
	const unit = "[Service]\nExecStart=/bin/x\nFileDescriptorStoreMax=1\nFileDescriptorStorePreserve=yes\n"
	root := unitfiletest.Tree(t, txtar.Parse([]byte(
		"-- etc/fdbridge/fdbridge.conf --\n[Bridge]\nExclude=alias.service ex*.service\n"+
			"-- etc/systemd/system/left@.service --\n"+unit+"[X-FDBridge]\nPreserve=no\n"+
			"-- etc/systemd/system/real.service --\n"+unit+
			"-- etc/systemd/system/alias.service -> real.service --\n"+
			"-- etc/systemd/system/other.service --\n"+unit)))
	rules, _ := config.LoadRules(root)
	current := &config.Current{Config: rules.Config, Current: generator.Current{Options: generator.Options{
		Root: root, Dir: t.TempDir(), Path: unitfile.SearchPath("", false),
		Exclude: func() (func(unit string) bool, []error) { return rules.Config.Excluded, nil },
	}}}
	for name, want := range map[string]bool{
		"left@1.service": true, "real.service": true, "extra.service": true, "fdbridged.service": true, "other.service": false, "run-1.service": false,
	} {
		if rules.Excluded(name) != want || current.Excluded(name) != want {
			t.Errorf("%s: Excluded %v, and for who runs on %v, want %v", name, rules.Excluded(name), current.Excluded(name), want)
		}
	}
}

// Who a unit is need not be asked when the generator knows what PID 1 has made of its files.
func TestFactsAreThoseThatPID1HasLoaded(t *testing.T) {
	const unit = "[Service]\nExecStart=/bin/x\nFileDescriptorStoreMax=1\nFileDescriptorStorePreserve=yes\n"
	root := unitfiletest.Tree(t, txtar.Parse([]byte("-- dev/liveupdate --\n-- run/systemd/generator/none --\n"+
		"-- etc/systemd/system/a.service --\n"+unit+"User=u\nGroup=g\n"+
		"-- etc/systemd/system/t@.service --\n"+unit+"User=v\n"+
		"-- etc/systemd/system/up.service --\n"+unit+"User=%p\n")))
	_, err := generator.Run(generator.Options{
		Root: root, Dir: filepath.Join(root, generator.Dir), Path: unitfile.SearchPath("", false),
		Exclude: func() (func(string) bool, []error) { return func(string) bool { return false }, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	rules, problems := config.LoadRules(root)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, want := range map[string]struct {
		user, group string
		loaded      bool
	}{
		"a.service": {"u", "g", true}, "t@1.service": {"v", "", true}, "up.service": {"%p", "", false}, "other.service": {},
	} {
		if facts, loaded := rules.Facts(name); facts.User != want.user || facts.Group != want.group || loaded != want.loaded {
			t.Errorf("%s: %+v, loaded %v, want %+v", name, facts, loaded, want)
		}
	}
}
