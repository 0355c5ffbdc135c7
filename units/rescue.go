// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fdbridge/fdbridge/units/bulk"
	"github.com/fdbridge/fdbridge/units/notify"
)

// TakeStore duplicates what is in the fd store of a unit that does not run,
// which is nothing when the unit is not loaded; the caller owns the files, also
// those that there are with an error, as when others could not be duplicated. The
// store stays as it is until empty is called. Errors answer errors.Is for
// ErrManager when PID 1 did not answer.
func (r *Reader) TakeStore(ctx context.Context, unit string) (files []notify.Passed, empty func() error, err error) {
	empty = func() error { return r.Empty(ctx, []string{unit}) }
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

// Empty empties the fd stores of units that have stopped. One that has failed is
// refused that until its failure is forgotten (service_clean in
// src/core/service.c, systemd 254). The others are emptied when one cannot be;
// the error names those that were not.
func (r *Reader) Empty(ctx context.Context, units []string) error {
	var calls []bulk.Call
	for _, unit := range units {
		for _, call := range []bulk.Call{
			{Member: "ResetFailedUnit", Args: []any{unit}},
			{Member: "CleanUnit", Args: []any{unit, []string{"fdstore"}}},
		} {
			call.Path, call.Interface, call.Read = managerPath, managerInterface, func(*bulk.Reader) {}
			calls = append(calls, call)
		}
	}
	if len(calls) == 0 {
		return nil
	}
	failed := []error{r.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })}
	for i := range calls {
		if err := calls[i].Err; err != nil {
			failed = append(failed, fmt.Errorf("empty the fd store of %s: %w: %w", calls[i].Args[0], ErrManager, err))
		}
	}
	return errors.Join(failed...)
}

// carryingVersion is the first systemd that carries fd stores through a kexec
// itself (src/shutdown/shutdown.c).
const carryingVersion = 261

// Carries tells whether PID 1 itself carries fd stores through a live update,
// which is so from systemd 261 on: memfds that are in no session yet, and
// sessions.
func (r *Reader) Carries(ctx context.Context) (bool, error) {
	version, err := r.Version(ctx)
	return carries(version), err
}

// carries tells what Carries does of a PID 1 of a version.
func carries(version string) bool { return majorVersion(version) >= carryingVersion }

// Version returns PID 1's version, such as "257.13-1~deb13u1".
func (r *Reader) Version(ctx context.Context) (version string, err error) {
	calls := []bulk.Call{managerProperty("Version", &version)}
	err = r.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })
	if err = errors.Join(err, calls[0].Err); err != nil {
		return "", fmt.Errorf("read the version of the service manager: %w", err)
	}
	return version, nil
}

// majorVersion is the number that a version begins with, such as "257.13-1" or,
// of what was built from git, "v258-rc2"; 0 of anything else.
func majorVersion(version string) int {
	digits := strings.TrimPrefix(version, "v")
	if end := strings.IndexFunc(digits, func(c rune) bool { return c < '0' || c > '9' }); end >= 0 {
		digits = digits[:end]
	}
	major, _ := strconv.Atoi(digits) // 0 if it is none
	return major
}
