// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk"
)

func TestStoreTellsAllOfOneService(t *testing.T) {
	units := machine()
	units["denied.service"] = with(service("yes", 8), func(u *fakeUnit) { u.dumpError = "org.freedesktop.DBus.Error.AccessDenied" })
	r := reader(t, units.serve)
	for _, want := range []Store{
		store("yes.service", "yes", wantEntries...), store("empty.service", "yes"), store("restart.service", "restart", wantEntries[1]),
	} {
		want.Max = 8
		got, err := r.Store(t.Context(), want.Unit)
		if diff := cmp.Diff(&want, got); err != nil || diff != "" {
			t.Errorf("Store(%s): %v (-want +got):\n%s", want.Unit, err, diff)
		}
	}
	if got, err := r.Store(t.Context(), "none.service"); err != nil || got.OptedIn() {
		t.Errorf("Store of a unit without one: %+v, %v", got, err)
	}
	if got, err := r.Store(t.Context(), "nosuch.service"); err != nil || got.OptedIn() {
		t.Errorf("Store of no unit: %+v, %v", got, err)
	}
	var answer *bulk.Error
	if got, err := r.Store(t.Context(), "denied.service"); got != nil || !errors.As(err, &answer) {
		t.Errorf("Store that cannot be read: %+v, %v", got, err)
	}
}
