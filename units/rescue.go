// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/units/notify"
)

// TakeStore duplicates what is in the fd store of a unit that does not run,
// which is nothing when the unit is not loaded; the caller owns the files. The
// store stays as it is until empty is called. Errors answer errors.Is for
// ErrManager when PID 1 did not answer.
func (r *Reader) TakeStore(ctx context.Context, unit string) (files []notify.Passed, empty func() error, err error) {
	empty = func() error { return emptyStore(ctx, r.Socket, unit) }
	entries, err := r.Entries(ctx, unit)
	if err != nil || len(entries) == 0 {
		return nil, empty, err
	}
	duplicator, err := OpenDuplicator(1)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = duplicator.Close() }() // it was only read from
	found, failed := duplicator.Dup(entries)
	for i, file := range found {
		if file != nil {
			files = append(files, notify.Passed{Name: entries[i].Name, FD: file.FD})
		}
	}
	return files, empty, errors.Join(failed...)
}

// emptyStore empties the fd store of a unit that has stopped. One that has
// failed is refused that until its failure is forgotten (service_clean in
// src/core/service.c, systemd 254).
func emptyStore(ctx context.Context, socket, unit string) error {
	m, err := Connect(ctx, socket)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	manager := m.conn.Object(busName, dbus.ObjectPath(managerPath))
	err = manager.CallWithContext(ctx, managerInterface+".ResetFailedUnit", 0, unit).Err
	if err == nil {
		err = manager.CallWithContext(ctx, managerInterface+".CleanUnit", 0, unit, []string{"fdstore"}).Err
	}
	if err = errors.Join(err, m.Close()); err != nil {
		return fmt.Errorf("empty the fd store of %s: %w: %w", unit, ErrManager, err)
	}
	return nil
}
