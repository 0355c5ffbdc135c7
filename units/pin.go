// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const errUnitExists = busName + ".UnitExists"

// PinName is the name of the slice that pins a unit. It has no dash, which
// would make it the child of another slice.
func PinName(unit string) string {
	sum := sha256.Sum256([]byte(unit))
	return "fdbridgepin" + hex.EncodeToString(sum[:8]) + ".slice"
}

// Pin keeps a unit from being forgotten when it stops, and its store with it.
//
// systemd 254 to 260 unload a stopped unit that no other loaded unit refers to
// in spite of FileDescriptorStorePreserve=yes (unit_gc_sweep in
// src/core/unit.c and service_may_gc in src/core/service.c look at references
// and processes, not at the store). A started transient slice that orders
// itself after the unit is such a reference. It stays until the machine goes
// down, also when fdbridged stops. Pinning a pinned unit does nothing.
func (m *Manager) Pin(ctx context.Context, unit string) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	_, err := m.sd.StartTransientUnitContext(ctx, PinName(unit), "fail", []systemd.Property{
		systemd.PropDescription("Keeps the fd store of " + unit),
		systemd.PropAfter(unit),
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
	}, nil)
	if err != nil && !isAnswer(err, errUnitExists) {
		return fmt.Errorf("pin %s with a transient slice: %w", unit, err)
	}
	return nil
}

// Refresh makes PID 1 notice new unit files and drop-ins of units that are not
// loaded, without a daemon-reload: loading any unit looks at the directories'
// time stamps (unit_load_fragment in src/core/load-fragment.c), but creating a
// transient unit does not.
func (m *Manager) Refresh(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	call := m.conn.Object(busName, managerPath).
		CallWithContext(ctx, managerInterface+".LoadUnit", 0, "fdbridge-refresh.service")
	if call.Err != nil {
		return fmt.Errorf("make the service manager look for new drop-ins: %w: %w", ErrManager, call.Err)
	}
	return nil
}
