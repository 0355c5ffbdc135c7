// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCoveredReadsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	if covered, err := Covered(dir); len(covered) != 0 || !errors.Is(err, ErrNotRun) {
		t.Errorf("Covered of nothing: %v, %v, want ErrNotRun", covered, err)
	}
	if err := (Register{}).file().write(dir); err != nil {
		t.Fatal(err)
	}
	if covered, err := Covered(dir); len(covered) != 0 || err != nil {
		t.Errorf("Covered of what was written for no units: %v, %v", covered, err)
	}
	var units []string
	want := map[string]bool{}
	for i := range 100 {
		units = append(units, fmt.Sprintf("unit-with-a-long-name-%d.service", i))
		want[units[i]] = true
	}
	if err := (File{Path: beforeName, Data: before(units)}).write(dir); err != nil {
		t.Fatal(err)
	}
	covered, err := Covered(dir)
	if diff := cmp.Diff(want, covered); diff != "" || err != nil {
		t.Errorf("Covered: %v (-want +got):\n%s", err, diff)
	}
}

func TestADropInIsTheUnitsOwnOrItsTemplatesOrOneOfAnAlias(t *testing.T) {
	dir := t.TempDir()
	alias, _ := aliasFor("dash-@.service")
	for _, unit := range []string{"a.service", "t@.service", alias} {
		if err := (File{Path: unit + ".d/" + DropInName}).write(dir); err != nil {
			t.Fatal(err)
		}
	}
	for unit, want := range map[string]bool{
		"a.service": true, "t@1.service": true, "t@.service": true, "dash-@i.service": true,
		"b.service": false, "u@1.service": false, "dash-.service": false,
	} {
		if got := hasDropIn(dir, unit); got != want {
			t.Errorf("hasDropIn(%s) = %v, want %v", unit, got, want)
		}
	}
}
