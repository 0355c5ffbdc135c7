// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/godbus/dbus/v5"
)

// RuntimeDir is where unit files and drop-ins of this boot are.
const RuntimeDir = "/run/systemd/system"

// pinName is the name of the target that pins units.
func pinName(units []string) string {
	sum := sha256.Sum256([]byte(strings.Join(units, "\x00")))
	return "fdbridge-pin-" + hex.EncodeToString(sum[:8]) + ".target"
}

// Pin keeps units from being forgotten when they stop, and their stores with
// them, until the kernel is replaced. Pinning a pinned unit does no harm. Many
// units take no longer than one, and at a time when they may be about to stop.
//
// systemd 254 to 260 unload a stopped unit that no other loaded unit refers to
// in spite of FileDescriptorStorePreserve=yes (unit_gc_sweep in
// src/core/manager.c and service_may_gc in src/core/service.c look at references
// and processes, not at the store). An active target that orders itself after
// the unit is such a reference. It needs a file, in dir, which is RuntimeDir but in
// tests: PID 1 makes no transient targets; and a transient slice is stopped by
// the shutdown in spite of DefaultDependencies=no, because a slice can be
// loaded without a file and has its default dependencies before it becomes
// transient (seen with 257).
func (m *Manager) Pin(ctx context.Context, dir string, units []string) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	name := pinName(units)
	var text strings.Builder
	fmt.Fprintf(&text, "# Made by fdbridged.\n[Unit]\nDescription=%s\nDefaultDependencies=no\nIgnoreOnIsolate=yes\n", pinned(units))
	for _, unit := range units {
		fmt.Fprintf(&text, "After=%s\n", unit)
	}
	err := os.WriteFile(filepath.Join(dir, name), []byte(text.String()), 0o644)
	if err == nil {
		if _, err = m.sd.StartUnitContext(ctx, name, "fail", nil); err != nil {
			err = fmt.Errorf("%w: %w", ErrManager, err)
		}
	}
	if err != nil {
		return fmt.Errorf("pin %d units with %s: %w", len(units), name, err)
	}
	return nil
}

func pinned(units []string) string {
	if len(units) == 1 {
		return "Keeps the fd store of " + units[0]
	}
	return fmt.Sprintf("Keeps the fd stores of %d units", len(units))
}

// Refresh makes PID 1 notice new unit files and drop-ins of units that are not
// loaded, without a daemon-reload: loading any unit looks at the directories'
// time stamps (unit_load_fragment in src/core/load-fragment.c), but creating a
// transient unit does not.
func (m *Manager) Refresh(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	call := m.conn.Object(busName, dbus.ObjectPath(managerPath)).
		CallWithContext(ctx, managerInterface+".LoadUnit", 0, "fdbridge-refresh.service")
	if call.Err != nil {
		return fmt.Errorf("make the service manager look for new drop-ins: %w: %w", ErrManager, call.Err)
	}
	return nil
}
