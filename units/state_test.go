// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestStateOfAUnit(t *testing.T) {
	state := func(load, active string, requires any) fakeUnit {
		return fakeUnit{properties: map[string]any{
			unitInterface + ".LoadState": load, unitInterface + ".ActiveState": active, unitInterface + ".Requires": requires,
		}}
	}
	units := pid1{
		"a.service":    state("loaded", "active", []string{"sysinit.target", "b@1.service"}),
		"gone.service": state("not-found", "inactive", []string{}),
		"odd.service":  state("loaded", "active", uint32(1)),
		"less.service": {},
	}
	reader := &Reader{Socket: bulktest.Serve(t, units.serve)}
	for unit, want := range map[string]State{
		"a.service":    {Load: "loaded", Active: "active", Requires: []string{"sysinit.target", "b@1.service"}},
		"gone.service": {Load: "not-found", Active: "inactive"},
	} {
		got, err := reader.State(t.Context(), unit)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", unit, err, diff)
		}
	}
	for _, unit := range []string{"odd.service", "less.service"} {
		if got, err := reader.State(t.Context(), unit); !errors.Is(err, ErrManager) {
			t.Errorf("%s: %+v, %v, want %v", unit, got, err, ErrManager)
		}
	}
	nobody := &Reader{Socket: t.TempDir() + "/none"}
	if _, err := nobody.State(t.Context(), "a.service"); !errors.Is(err, ErrManager) {
		t.Errorf("without PID 1: %v, want %v", err, ErrManager)
	}
}
