// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"testing"

	"github.com/fdbridge/fdbridge/bridge/storetest"
)

// PID 1 itself goes through the same in a virtual machine.
func TestManagerConforms(t *testing.T) {
	const unit = "a.service"
	for name, way := range map[string]func(k keeper) storetest.Keeper{
		"read at once":         func(k keeper) storetest.Keeper { return k },
		"read when waited for": func(k keeper) storetest.Keeper { return &queue{keeper: k} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add(unit, "yes")
			w.setMax(unit, storetest.Room)
			subject := storetest.Subject{
				Unit: unit, Keeper: way(keeper{m: w.manager, unit: unit}), PID1: w.manager, Kernel: w.kernel,
				Duplicator: func() (storetest.Duplicator, error) { return w.duplicator() },
			}
			for _, c := range storetest.Checks() {
				t.Run(c.Name, func(t *testing.T) { c.Run(t, subject) })
			}
		})
	}
}
