// SPDX-License-Identifier: Apache-2.0

package generator_test

import (
	"errors"
	"os"
	"path/filepath"
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
		txtar.File{Name: lib[1:] + "out.service", Data: []byte("[Service]\nExecStart=/bin/x\nUser=nobody\n")})
	if problems, err := generator.Run(o); err != nil || len(problems) > 0 {
		t.Fatalf("Run: %v, %v", problems, err)
	}
	r, err := generator.ReadRegister(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]generator.Facts{
		"x.service":     {Fragment: lib + "x.service"},
		"t@any.service": {Fragment: lib + "t@.service", User: "%i"},
		"t@own.service": {Fragment: lib + "t@.service", User: "own", Group: "staff"},
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
