// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestIdentityOfAUnit(t *testing.T) {
	const dropIn = "/run/systemd/generator/a.service.d/zz-fdbridge.conf"
	properties := map[string]any{
		unitInterface + ".Id": "a.service", unitInterface + ".LoadState": "loaded",
		unitInterface + ".FragmentPath": "/etc/systemd/system/a.service", unitInterface + ".DropInPaths": []string{dropIn},
		serviceInterface + ".User": "alice", serviceInterface + ".Group": "",
		serviceInterface + ".FileDescriptorStoreMax": uint32(7), serviceInterface + ".FileDescriptorStorePreserve": "yes",
	}
	gone := maps.Clone(properties)
	delete(gone, serviceInterface+".User")
	units := pid1{"a.service": {properties: properties}, "alias.service": {properties: properties}, "less.service": {properties: gone}}
	reader := &Reader{Socket: bulktest.Serve(t, units.serve)}
	want := Identity{
		Unit: "a.service", Load: "loaded", FragmentPath: "/etc/systemd/system/a.service", User: "alice",
		Max: 7, Preserve: "yes", DropIns: []string{dropIn},
	}
	for _, unit := range []string{"a.service", "alias.service"} {
		got, err := reader.Identity(t.Context(), unit)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", unit, err, diff)
		}
	}
	if got, err := reader.Identity(t.Context(), "less.service"); !errors.Is(err, ErrManager) || got.Unit != "" {
		t.Errorf("a unit of which not all is known: %+v, %v", got, err)
	}
	nobody := &Reader{Socket: t.TempDir() + "/none"}
	if _, err := nobody.Identity(t.Context(), "a.service"); !errors.Is(err, ErrManager) {
		t.Errorf("without PID 1: %v, want %v", err, ErrManager)
	}
	if !want.OptedIn() || want.Missing() || !want.HasDropIn("zz-fdbridge") || want.HasDropIn("fdbridge") {
		t.Errorf("%+v: opted in %v, missing %v, drop-in %v", want, want.OptedIn(), want.Missing(), want.HasDropIn("zz-fdbridge"))
	}
	if missing := (&Identity{Load: "masked"}); !missing.Missing() || missing.OptedIn() {
		t.Errorf("%+v: missing %v, opted in %v", missing, missing.Missing(), missing.OptedIn())
	}
}
