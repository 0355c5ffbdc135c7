// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godbus/dbus/v5"
)

// RuntimeDir is where unit files and drop-ins of this boot are.
const RuntimeDir = "/run/systemd/system"

// PinName is the name of the target that pins a unit.
func PinName(unit string) string {
	sum := sha256.Sum256([]byte(unit))
	return "fdbridge-pin-" + hex.EncodeToString(sum[:8]) + ".target"
}

// Pin keeps a unit from being forgotten when it stops, and its store with it,
// until the kernel is replaced. Pinning a pinned unit does nothing.
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
func (m *Manager) Pin(ctx context.Context, dir, unit string) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	name := PinName(unit)
	text := fmt.Sprintf("# Made by fdbridged.\n[Unit]\nDescription=Keeps the fd store of %s\n"+
		"DefaultDependencies=no\nIgnoreOnIsolate=yes\nAfter=%[1]s\n", unit)
	err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
	if err == nil {
		_, err = m.sd.StartUnitContext(ctx, name, "fail", nil)
	}
	if err != nil {
		return fmt.Errorf("pin %s with %s: %w", unit, name, err)
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
	call := m.conn.Object(busName, dbus.ObjectPath(managerPath)).
		CallWithContext(ctx, managerInterface+".LoadUnit", 0, "fdbridge-refresh.service")
	if call.Err != nil {
		return fmt.Errorf("make the service manager look for new drop-ins: %w: %w", ErrManager, call.Err)
	}
	return nil
}
