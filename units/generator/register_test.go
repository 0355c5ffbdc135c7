// SPDX-License-Identifier: Apache-2.0

package generator_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/units/generator"
)

func TestRegisterSaysWhatTheUnitsAre(t *testing.T) {
	const lib = "/usr/lib/systemd/system/"
	o := options(t, device,
		txtar.File{Name: lib[1:] + "t@.service", Data: []byte(optIn + "User=%i\n")},
		txtar.File{Name: "etc/systemd/system/t@own.service.d/a.conf", Data: []byte("[Service]\nUser=own\nGroup=staff\n")},
		txtar.File{Name: lib[1:] + "out.service", Data: []byte("[Service]\nExecStart=/bin/x\nUser=nobody\n")},
		txtar.File{Name: lib[1:] + "aliased.service", Data: []byte(optIn)},
		txtar.File{Name: lib[1:] + "excluded.service -> aliased.service"})
	if problems, err := generator.Run(o); err != nil || len(problems) > 0 {
		t.Fatalf("Run: %v, %v", problems, err)
	}
	r, err := generator.ReadRegister(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]generator.Facts{
		"x.service":     {Fragment: lib + "x.service"},
		"t@any.service": {Fragment: lib + "t@.service", User: "%i", Unclear: true},
		"t@own.service": {Fragment: lib + "t@.service", User: "own", Group: "staff"},
		// It is excluded by a name that nobody else knows it by.
		"aliased.service": {Left: true},
	} {
		got, ok := r.Lookup(unit)
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("%s: %v (-want +got):\n%s", unit, ok, diff)
		}
	}
	if got, ok := r.Lookup("out.service"); ok {
		t.Errorf("a unit that has not opted in: %v", got)
	}
	made, problems := generator.MakeRegister(o.Root, o.Path, excluded)
	if diff := cmp.Diff(r, made); diff != "" || len(problems) > 0 {
		t.Errorf("made from the unit files: %v (-want +got):\n%s", problems, diff)
	}
}

func TestRegisterThatIsNotThereSaysSo(t *testing.T) {
	dir := t.TempDir()
	r, err := generator.ReadRegister(dir)
	if _, ok := r.Lookup("x.service"); ok || !errors.Is(err, generator.ErrNotRun) {
		t.Errorf("%v, %v, want ErrNotRun", ok, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "fdbridged.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fdbridged.service.d/units.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := generator.ReadRegister(dir); err == nil {
		t.Error("a truncated one is read")
	}
}

func TestUsersThatPID1MayMakeSomethingElseOfAreUnclear(t *testing.T) {
	for settings, unclear := range map[string]bool{
		"": false, "User=alice\nGroup=_staff-2\n": false, "User=%u\nUser=\n": false, "DynamicUser=yes\nDynamicUser=no\n": false,
		"User=%u\n": true, "Group=a b\n": true, "User=1000\n": true, "User=-a\n": true,
		"User=alice\nDynamicUser=yes\nDynamicUser=\n": true, "User=" + strings.Repeat("x", 32) + "\n": true,
	} {
		r := register(t, txtar.File{Name: "etc/systemd/system/a.service", Data: []byte(optIn + settings)})
		if facts, ok := r.Lookup("a.service"); facts.Unclear != unclear || !ok {
			t.Errorf("%q: %+v, %v, want unclear %v", settings, facts, ok, unclear)
		}
	}
}

// register makes the register of a machine with these units, of which nothing
// may be wrong.
func register(t *testing.T, files ...txtar.File) generator.Register {
	t.Helper()
	o := options(t, files...)
	r, problems := generator.MakeRegister(o.Root, o.Path, excluded)
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	return r
}

func TestIdentityIsWhatTheUnitSays(t *testing.T) {
	words := []string{generator.ByUnit, generator.ByUser, generator.ByGroup, generator.ByFragment}
	for settings, want := range map[string]struct{ compared, problem string }{
		"":                    {compared: "unit user group"},
		"Identity=unit\n":     {compared: "unit"},
		"Identity=fragment\n": {compared: "unit fragment"},
		"Identity=user\nIdentity=group  fragment\n":     {compared: "unit user group fragment"},
		"Identity=fragment\nIdentity=\n":                {compared: "unit user group"},
		"Identity=fragment\nIdentity=\nIdentity=user\n": {compared: "unit user"},
		"Identity=unit usr\n":                           {"unit user group", `:6: Identity=unit usr is ignored, and the default holds: "usr" is none of unit, user, group and fragment`},
		"Identity=usr\nIdentity=unit\n":                 {"unit user group", `:6: Identity=usr is ignored`},
		"Identity=usr\nIdentity=\nIdentity=unit\n":      {"unit", `:6: Identity=usr is ignored`},
	} {
		o := options(t, txtar.File{Name: "etc/systemd/system/a.service", Data: []byte(optIn + "[X-FDBridge]\n" + settings)})
		r, problems := generator.MakeRegister(o.Root, o.Path, excluded)
		facts, _ := r.Lookup("a.service")
		compared := slices.DeleteFunc(slices.Clone(words), func(word string) bool { return !facts.Compares(word) })
		if diff := cmp.Diff(want.compared, strings.Join(compared, " ")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", settings, diff)
		}
		if text := fmt.Sprint(problems); (len(problems) > 0) != (want.problem != "") || !strings.Contains(text, want.problem) {
			t.Errorf("%q: problems %s, want %q", settings, text, want.problem)
		}
	}
}

func TestPreviousNamesAreThoseThatAUnitCanHaveHad(t *testing.T) {
	const own = "[X-FDBridge]\n"
	for text, test := range map[string]struct{ file, unit, names, problem string }{
		"PreviousName=old.service older.service\nPreviousName=x@1.service\n": {"a", "a", "old.service older.service x@1.service", ""},
		"PreviousName=old.service\nPreviousName=\nPreviousName=b.service\n":  {"a", "a", "b.service", ""},
		"PreviousName=old.socket old.service ../x.service\n":                 {"a", "a", "old.service", "old.socket is ignored: it is no name of a service"},
		"PreviousName=a.service\n":                                           {"a", "a", "", "it is the unit's name"},
		"PreviousName=old@.service\n":                                        {"a", "a", "", "the unit has no instances"},
		"PreviousName=old@.service more@.service\n":                          {"a@", "a@i", "old@i.service more@i.service", ""},
		"PreviousName=old@.service one.service\n":                            {"a@i", "a@i", "old@i.service one.service", ""},
		"PreviousName=one.service\n":                                         {"a@", "a@i", "", "all instances of the template would have had it"},
	} {
		o := options(t, txtar.File{Name: "etc/systemd/system/" + test.file + ".service", Data: []byte(optIn + own + text)})
		r, problems := generator.MakeRegister(o.Root, o.Path, excluded)
		unit := test.unit + ".service"
		facts, ok := r.Lookup(unit)
		if diff := cmp.Diff(test.names, strings.Join(facts.PreviousNames(unit), " ")); diff != "" || !ok {
			t.Errorf("%q: %v (-want +got):\n%s", text, ok, diff)
		}
		if said := fmt.Sprint(problems); (len(problems) > 0) != (test.problem != "") || !strings.Contains(said, test.problem) {
			t.Errorf("%q: problems %s, want %q", text, said, test.problem)
		}
	}
}
