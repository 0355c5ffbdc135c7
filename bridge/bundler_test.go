// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
)

// PID 1 takes one message for each entry, and compares it with all the others.
func TestTheSessionsOfManyUnitsTakeFewEntriesInTheStore(t *testing.T) {
	const count = 300
	u := update(t, func(w *world) (names []string) {
		for i := range count {
			unit := fmt.Sprintf("u%03d.service", i)
			w.add(unit, "yes")
			w.put(unit, "x", unit)
			names = append(names, unit)
		}
		return names
	})
	entries := func() int {
		names := u.names(bridge.OwnUnit)
		if others := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "sessions" }); !slices.Equal(others, []string{"index"}) {
			t.Errorf("there are also %q", others)
		}
		return len(names)
	}
	d := u.serveOwn()
	n := entries()
	if n < 3 || n > 1+count/100 {
		t.Errorf("there are %d entries", n)
	}
	for _, unit := range u.units[:count/2] {
		n, err := u.deliver(d.socket, unit)
		result{n, err}.check(t, unit, 1)
	}
	for range 2 { // what was delivered is still in a bundle, but finished
		d.stop()
		d = u.serveOwn()
		if diff := cmp.Diff(u.units[count/2:], d.holder.Units()); diff != "" {
			t.Errorf("held (-want +got):\n%s", diff)
		}
		if left := entries(); left != n {
			t.Errorf("of %d entries there are %d", n, left)
		}
	}
	d.stop()
	u.kexec(u.preserve())
	d = u.serveOwn()
	u.deliverAll(t, d)
	u.check(t, d)
}

// There may be sessions behind it that somebody still wants.
func TestABundleThatCannotBeOpenedIsReportedAndLeftThere(t *testing.T) {
	u := update(t, stores["one unit"])
	u.put(bridge.OwnUnit, "sessions", "?")
	d := u.serveOwn()
	problem := func() {
		t.Helper()
		if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `"sessions"`) || !strings.Contains(p[0], "left there") {
			t.Errorf("problems: %q", p)
		}
	}
	problem()
	u.deliverAll(t, d)
	d.stop()
	d = u.serveOwn()
	problem()
	if !slices.Contains(u.names(bridge.OwnUnit), "sessions") {
		t.Errorf("it was removed, there are %q", u.names(bridge.OwnUnit))
	}
	d.stop()
	if _, err := u.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || !strings.Contains(err.Error(), "taken over") {
		t.Errorf("Run: %v", err)
	}
}
